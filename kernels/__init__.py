"""Hand-written kernels, one folder for each operation: its definition, every implementation and
its gradient side by side. kernels/README.md is the map."""

"""Hand-written kernels, one folder per operation; see kernels/README.md."""

"""The rectifier and its gradient, unfused."""

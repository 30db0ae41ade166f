"""Softmax, cross-entropy and their gradient in one pass."""

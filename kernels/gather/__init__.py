"""Bringing a mini-batch together from the whole training set."""

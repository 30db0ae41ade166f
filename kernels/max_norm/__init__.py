"""Shortening the weights of each unit to a length at most."""

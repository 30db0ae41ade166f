"""Inverted dropout with counter-based random numbers."""

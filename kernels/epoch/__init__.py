"""Whole epochs in one call."""

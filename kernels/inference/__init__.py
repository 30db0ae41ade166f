"""Predictions for many images, or one, in one call."""

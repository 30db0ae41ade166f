"""Pieces that several operations share. Imports nothing else of this project."""

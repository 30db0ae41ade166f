"""Fixtures for the checks of single operations."""

import pytest


@pytest.fixture
def float64_backend(backend):
    """Every backend that computes in float64 too."""
    if "float64" not in backend.precisions:
        pytest.skip(f"{backend.name} computes in {', '.join(backend.precisions)} only")
    return backend

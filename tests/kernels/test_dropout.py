"""Dropout and the random numbers under it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdigit.bench import checks
from fastdigit.kernels.common.philox import philox4x32

words = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("counter", "key", "expected"), checks.PHILOX_KNOWN)
def test_philox_gives_the_published_words(counter, key, expected):
    assert tuple(int(word) for word in philox4x32(*map(np.uint64, (*counter, *key)))) == expected


@pytest.mark.parametrize(("counter", "key", "expected"), checks.PHILOX_KNOWN)
def test_the_slow_philox_of_these_tests_does_too(counter, key, expected):
    assert checks.philox(counter, key) == expected


@settings(max_examples=50)
@given(counter=st.tuples(words, words, words, words), key=st.tuples(words, words))
def test_philox_on_arrays_is_philox_on_integers(counter, key):
    arrays = [np.array([0, word], np.uint64) for word in counter]
    first, second = zip(*philox4x32(*arrays, *map(np.uint64, key)), strict=True)
    assert tuple(map(int, first)) == checks.philox((0, 0, 0, 0), key)
    assert tuple(map(int, second)) == checks.philox(counter, key)


@pytest.mark.parametrize(("check", "case"), checks.parameters("dropout"))
def test_dropout(backend, check, case):
    check(backend.dropout, backend, case)


@pytest.mark.parametrize("case", checks.DROPOUT, ids=str)
def test_float64(float64_backend, case):
    checks.check_dropout(float64_backend.dropout, float64_backend, case, "float64")

"""A check is worth what it rejects: every faulty kernel, by exactly the checks that should see it."""

import warnings

import pytest

from fastdigit.bench.checks import CHECKS, Rejected

from .kernels import RIGHT, WRONG, right


def rejections(operation, kernel):
    """The message of each check that rejects the kernel in some case: ``{check: message}``."""
    found = {}
    for check, of_check in CHECKS[operation]:
        for case in of_check:
            try:
                with warnings.catch_warnings():
                    # A faulty kernel may overflow; the check must see it without NumPy's help.
                    warnings.simplefilter("ignore", RuntimeWarning)
                    check(kernel, right, case)
            except Rejected as rejected:
                found[check.__name__] = str(rejected)
                break
    return found


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_rejected(wrong):
    found = rejections(wrong.operation, wrong.kernel)
    assert set(found) == set(wrong.rejected_by), found
    for check, part in wrong.rejected_by.items():
        assert part in found[check]


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_kernels_pass(name):
    assert rejections(name.partition(",")[0], RIGHT[name]) == {}


def test_every_operation_has_faulty_kernels():
    assert {wrong.operation for wrong in WRONG} == set(CHECKS)

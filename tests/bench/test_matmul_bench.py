"""The harness of bench.matmul: two processes in turns, and no time for a wrong product."""

import numpy as np
import pytest

from fastdigit.bench import matmul, turns
from fastdigit.kernels.matmul import cpu

NAME = "64x128x10 nt"


def test_both_sides_are_measured_in_turns():
    limit, rows = matmul.compare(2, [NAME])
    assert [row["product"] for row in rows] == [NAME]
    row = rows[0]
    assert 0 < row["gflops_fastdigit"] < 1.5 * limit
    assert row["gflops_numpy"] > 0
    low, high = row["ratio_quartiles"]
    assert 0 < low <= row["ratio_median"] <= high
    assert matmul.geometric_mean(rows) == pytest.approx(row["ratio_median"])


def test_a_wrong_product_is_refused_a_time(monkeypatch):
    right = cpu.matmul

    def wrong(a, b, out):
        right(a, b, out)
        out[-1, -1] += 0.01

    monkeypatch.setattr(cpu, "matmul", wrong)
    side = matmul.Answers("fastdigit")
    for _ in range(2):
        assert side(NAME)["no_time"].startswith("refused: its error is")
    assert side("limit")["gflops"] > 1


def test_a_refused_product_has_no_mean(monkeypatch):
    class Wrong:
        def __init__(self, command, *how):
            self.who = command[-1]

        def ask(self, name):
            wrong = self.who == "fastdigit" and name != "limit"
            return {"no_time": "refused"} if wrong else {"gflops": 100.0}

        def end(self):
            pass

    monkeypatch.setattr(turns, "_Side", Wrong)
    _, rows = matmul.compare(2, [NAME])
    assert rows == [{"product": NAME, "no_time": {"fastdigit": "refused"}}]
    assert np.isnan(matmul.geometric_mean(rows))


def test_the_bound_is_sharp_enough_to_see_one_wrong_sum():
    a, b, _ = matmul.operands(*matmul.PRODUCTS[NAME])
    assert matmul.error_to_bound(a, b, np.matmul(a, b)) < 1
    assert matmul.error_to_bound(a[:, :-1], b[:-1], np.matmul(a, b)) > 1

"""The harness of bench.matmul: two processes in turns, and no time for a wrong product."""

import io
import json

import numpy as np
import pytest

from fastdigit.bench import matmul
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


def test_a_wrong_product_is_refused_a_time(monkeypatch, capsys):
    right = cpu.matmul

    def wrong(a, b, out):
        right(a, b, out)
        out[-1, -1] += 0.01

    monkeypatch.setattr(cpu, "matmul", wrong)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{NAME}\n{NAME}\n"))
    matmul.child("fastdigit")
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 2
    assert all(answer.startswith("refused: its error is") for answer in answers)


def test_a_refused_product_has_no_mean(monkeypatch):
    class Wrong:
        def __init__(self, who):
            self.who = who

        def turn(self, name):
            return "refused" if self.who == "fastdigit" and name != "limit" else 100.0

        def end(self):
            pass

    monkeypatch.setattr(matmul, "Side", Wrong)
    _, rows = matmul.compare(2, [NAME])
    assert rows == [{"product": NAME, "no_time": {"fastdigit": "refused"}}]
    assert np.isnan(matmul.geometric_mean(rows))


def test_a_process_that_ends_is_an_error(monkeypatch):
    side = matmul.Side("nobody's")  # argparse refuses the name
    try:
        with pytest.raises(RuntimeError, match="ended with status 2"):
            side.turn(NAME)
    finally:
        side.end()


def test_the_bound_is_sharp_enough_to_see_one_wrong_sum():
    a, b, _ = matmul.operands(*matmul.PRODUCTS[NAME])
    assert matmul.error_to_bound(a, b, np.matmul(a, b)) < 1
    assert matmul.error_to_bound(a[:, :-1], b[:-1], np.matmul(a, b)) > 1

"""What ``bench.predict`` makes of the turns of a side."""

import pytest

from fastdigit.bench import predict


def turn(label, spread=0.0):
    return {
        "label": [label * (1 - spread), label, label * (1 + spread)],
        "probabilities": [9, 9, 9],
        "all": 1e6,
    }


FACTS = {"used": "a library", "difference": 1e-7}


@pytest.mark.parametrize(
    ("labels", "spread", "quartiles", "noisy"),
    [
        ([8, 8, 8, 8, 8], 0.2, [8, 8], False),  # calls differ, turns do not
        ([7, 8, 9, 7, 9], 0.0, [7, 9], True),
        ([8], 0.01, [7.92, 8.08], False),  # of one turn there are its calls alone
        ([8], 0.2, [6.4, 9.6], True),
    ],
)
def test_the_spread_is_that_of_turns(labels, spread, quartiles, noisy):
    row = predict.row_of("library", FACTS, [turn(label, spread) for label in labels])
    assert row["microseconds_label"] == 8
    assert row["microseconds_label_quartiles"] == pytest.approx(quartiles)
    assert row["noisy"] is noisy


def test_one_failed_turn_is_no_time():
    row = predict.row_of("library", FACTS, [turn(8), {"no_time": "failed: killed"}])
    assert row == {"side": "library", "used": "a library", "no_time": "failed: killed"}

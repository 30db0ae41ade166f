"""Learning-rate schedules against formulas of their own."""

import math
from itertools import pairwise

import pytest

import fastdigit as fd


def factors(schedule, steps, steps_per_epoch=10):
    return [schedule(step, steps, steps_per_epoch) for step in range(steps)]


def falls(values):
    return all(a > b for a, b in pairwise(values))


def rises(values):
    return falls(values[::-1])


def test_constant():
    assert factors(fd.Constant(), 30) == [1.0] * 30


def test_step():
    values = factors(fd.Step(epochs=2, factor=0.5), 60)
    assert values == [1.0] * 20 + [0.5] * 20 + [0.25] * 20


def test_cosine_without_warmup():
    values = factors(fd.Cosine(), 100)
    assert values[0] == 1.0
    assert values[50] == pytest.approx(0.5)
    assert 0 < values[-1] < 1e-3
    assert falls(values)
    for step, value in enumerate(values):  # SGDR, equation 5
        assert value == pytest.approx(0.5 * (1 + math.cos(math.pi * step / 100)))


def test_cosine_with_warmup_and_an_end():
    values = factors(fd.Cosine(warmup=2, final=0.1), 100)
    assert values[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert values[19] == values[20] == 1.0  # the peak, and the cosine's own first step
    assert falls(values[20:])
    assert values[60] == pytest.approx((1 + 0.1) / 2)
    assert 0.1 < values[-1] < 0.101


def test_warmup_of_a_fraction_of_an_epoch():
    assert factors(fd.Cosine(warmup=0.5), 40)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_warmup_longer_than_the_training():
    values = factors(fd.Cosine(warmup=100), 40)
    assert rises(values)
    assert values[-1] == 1.0


def one_cycle_lr(step, total_steps, pct_start, div_factor, final_div_factor, max_lr=1.0):
    """torch.optim.lr_scheduler.OneCycleLR with cosine annealing, as its documentation defines it."""
    initial, smallest = max_lr / div_factor, max_lr / div_factor / final_div_factor
    end_of_rise = pct_start * total_steps - 1
    if step < end_of_rise:  # at the end itself both halves give the peak
        start, end, share = initial, max_lr, step / end_of_rise
    else:
        start, end, share = max_lr, smallest, (step - end_of_rise) / (total_steps - 1 - end_of_rise)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 100, 469 * 6])
@pytest.mark.parametrize(("rise", "start", "final"), [(0.3, 25.0, 1e4), (0.5, 10.0, 100.0), (0.1, 1.0, 1.0)])
def test_one_cycle_is_torchs(steps, rise, start, final):
    schedule = fd.OneCycle(rise=rise, start_divisor=start, final_divisor=final)
    for step, value in enumerate(factors(schedule, steps)):
        assert value == pytest.approx(one_cycle_lr(step, steps, rise, start, final), rel=1e-9, abs=1e-12)


def test_one_cycle_ends_and_peak():
    values = factors(fd.OneCycle(), 1000)
    assert values[0] == pytest.approx(1 / 25)
    assert values[-1] == pytest.approx(1 / 25e4)
    assert max(values) == values[299] == pytest.approx(1.0)
    assert rises(values[:300])
    assert falls(values[299:])


@pytest.mark.parametrize("steps", range(1, 12))
@pytest.mark.parametrize(
    "schedule",
    [fd.Constant(), fd.Step(1), fd.Cosine(), fd.Cosine(warmup=0.3, final=1), fd.OneCycle(), fd.OneCycle(0.9)],
    ids=repr,
)
def test_short_trainings_get_sound_factors(schedule, steps):
    assert all(0 < factor <= 1 for factor in factors(schedule, steps, steps_per_epoch=3))


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (fd.Step, {"epochs": 0}),
        (fd.Step, {"factor": 0}),
        (fd.Step, {"factor": 1.5}),
        (fd.Step, {"factor": math.nan}),
        (fd.Cosine, {"warmup": -1}),
        (fd.Cosine, {"final": -0.1}),
        (fd.Cosine, {"final": 2}),
        (fd.OneCycle, {"rise": 0}),
        (fd.OneCycle, {"rise": 1}),
        (fd.OneCycle, {"rise": math.nan}),
        (fd.OneCycle, {"start_divisor": 0.5}),
        (fd.OneCycle, {"final_divisor": 0}),
    ],
)
def test_numbers_out_of_range(make, numbers):
    with pytest.raises(fd.ConfigError):
        make(**numbers)


@pytest.mark.parametrize("rise", [0.1, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("steps", [2, 3, 5, 50])
def test_one_cycle_ends_where_it_promises(rise, steps):
    schedule = fd.OneCycle(rise)
    last = schedule(steps - 1, steps, steps)
    assert last == pytest.approx(1 / (schedule.start_divisor * schedule.final_divisor))


def test_one_cycle_of_a_single_step_takes_the_whole_rate():
    assert fd.OneCycle()(0, 1, 1) == 1

"""Measuring again ends: after some rounds, and after some seconds."""

from __future__ import annotations

import random

import pytest

from sti_hf.planning import Workload
from sti_hf.profiling.consistency import (
    LONGEST_REPEATING,
    PASSES,
    ROUNDS,
    Measurement,
    Point,
    measure_until_consistent,
)

POINTS = [Point(Workload(tokens), width, 4) for tokens in (16, 64) for width in (3, 6, 12)]


class Noisy:
    """A machine that never agrees with itself, and takes `seconds` for each measurement by its own clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.now = 1000.0
        self.calls = 0

    def __call__(self, point: Point) -> Measurement:
        self.now += self.seconds
        self.calls += 1
        layer = 2.0 ** (100 - self.calls)  # each twice as fast as all before, and far above the clock's noise
        return Measurement(layer=layer, decompress=layer, before=0.0, after=0.0, running=1.0)

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize("seconds", [1e-3, LONGEST_REPEATING / 4, 10 * LONGEST_REPEATING])
def test_repeating_ends_after_some_seconds(seconds: float) -> None:
    machine = Noisy(seconds)
    # One that has begun is not broken off.
    repeats = min(ROUNDS * len(POINTS), int(LONGEST_REPEATING / seconds) + 1)
    found = measure_until_consistent(machine, POINTS, machine.clock)
    assert machine.calls == PASSES * len(POINTS) + repeats
    assert found.busy
    assert set(found.typical) == set(POINTS)


def test_what_agrees_is_not_repeated() -> None:
    noise = random.Random(0)
    calls = []

    def measure(point: Point) -> Measurement:
        calls.append(point)
        seconds = 1e-3 * point.workload.tokens * point.width * noise.uniform(1, 1.1)
        return Measurement(layer=seconds, decompress=seconds, before=0.0, after=0.0, running=1.0)

    found = measure_until_consistent(measure, POINTS, clock=lambda: 0.0)
    assert calls == POINTS * PASSES
    assert not found.busy


def test_the_median_of_the_passes_counts() -> None:
    passes = dict.fromkeys(POINTS, 0)

    def measure(point: Point) -> Measurement:
        passes[point] += 1
        slower = (1.2, 1.0, 1.1)[passes[point] % PASSES]
        seconds = 1e-3 * point.workload.tokens * point.width
        return Measurement(slower * seconds, slower * seconds, slower, 2 * slower, running=1.0)

    found = measure_until_consistent(measure, POINTS, clock=lambda: 0.0)
    for point, typical in found.typical.items():
        assert typical.seconds == pytest.approx(1.1 * 2e-3 * point.workload.tokens * point.width)
        assert (typical.before, typical.after) == (1.1, 2.2)


@pytest.mark.parametrize(
    ("small", "large", "within"),
    [
        (Workload(64), Workload(64, 2), True),
        (Workload(64, 8), Workload(512), True),
        (Workload(512), Workload(64, 8), False),
        (Workload(256), Workload(64, 8), False),
        (Workload(64, 2), Workload(256), True),
    ],
)
def test_what_has_no_less_to_do(small: Workload, large: Workload, within: bool) -> None:
    assert Point(small, 3, 4).is_within(Point(large, 3, 4)) is within
    assert Point(small, 3, 4).is_within(Point(large, 6, 4)) is within
    assert not Point(small, 6, 4).is_within(Point(large, 3, 4))
    assert not Point(small, 3, 4).is_within(Point(large, 3, 5))

"""Compute is measured on machines that are free, busy for a while, and busy all the time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sti_hf.planning import Workload
from sti_hf.profiling.compute import Compute, measure_compute
from sti_hf.profiling.consistency import PASSES, ROUNDS, Measurement, Point, monotone

SHORT = (Workload(16), Workload(64), Workload(64, 2), Workload(64, 4), Workload(64, 8))
LONG = (Workload(128), Workload(512))
WIDTHS, FIDELITIES = (3, 6, 12), (2, 3, 4, 5, 6, 32)
POINTS = len(SHORT) * len(WIDTHS) + len(LONG) + len(FIDELITIES) - 1
Slowness = Callable[[int, Point], float]


def idle(point: Point) -> Measurement:
    """What a machine that is free would take."""
    return Measurement(
        layer=(1000 + point.workload.all_tokens * point.width + attention(point.workload)) * 1e-6,
        decompress=(1e-4 if point.bits == 32 else 5e-5 * point.bits) * point.width,
        before=1e-3 + 1e-5 * point.workload.all_tokens,
        after=2e-3 + 1e-6 * point.workload.all_tokens,
        running=1.0,
    )


def attention(workload: Workload) -> float:
    """Microseconds, of short sequences none."""
    return 0.005 * workload.pairs if workload in LONG else 0.0


class Machine:
    """Takes longer than when it is free, by a factor for each call."""

    def __init__(self, slowness: Slowness, running: float = 1.0) -> None:
        self.slowness, self.running = slowness, running
        self.calls: list[Point] = []

    def __call__(self, point: Point) -> Measurement:
        factor, found = self.slowness(len(self.calls), point), idle(point)
        self.calls.append(point)
        return Measurement(
            layer=found.layer * factor,
            decompress=found.decompress * factor,
            before=found.before * factor,
            after=found.after * factor,
            running=1.0 if factor == 1 else self.running,
        )


def measured(machine: Callable[[Point], Measurement]) -> Compute:
    return measure_compute(machine, SHORT, LONG, WIDTHS, FIDELITIES)


def check_monotone(compute: Compute) -> None:
    assert (np.diff(compute.layer, axis=0) >= 0).all()
    assert (np.diff(compute.layer, axis=1) >= 0).all()
    assert all((np.diff(each) >= 0).all() for each in (compute.attention, compute.before, compute.after))
    assert compute.attention[0] == 0
    assert (np.diff([compute.decompress[bits] for bits in (2, 3, 4, 5, 6)]) >= 0).all()


def check_idle(compute: Compute) -> None:
    """That it is what a free machine takes."""
    assert not compute.busy
    for row, workload in zip(compute.layer, SHORT, strict=True):
        assert row.tolist() == [idle(Point(workload, width, 4)).layer for width in WIDTHS]
    assert compute.attention == pytest.approx([0.0, *(attention(workload) * 1e-6 for workload in LONG)])
    assert compute.before.tolist() == [idle(Point(workload, 12, 4)).before for workload in SHORT]
    assert compute.after.tolist() == [idle(Point(workload, 12, 4)).after for workload in SHORT]
    assert compute.decompress == {bits: idle(Point(SHORT[0], 12, bits)).decompress for bits in FIDELITIES}
    assert list(compute.decompress) == list(FIDELITIES)


def test_a_free_machine_is_measured_once() -> None:
    machine = Machine(lambda call, point: 1)
    check_idle(measured(machine))
    assert machine.calls == machine.calls[:POINTS] * PASSES, "the passes are interleaved"
    assert len(set(machine.calls)) == POINTS


@pytest.mark.parametrize("first", [0, 7, POINTS, 2 * POINTS])
@pytest.mark.parametrize("length", [1, POINTS // 2, POINTS, PASSES * POINTS])
@pytest.mark.parametrize("seed", range(3))
def test_busy_for_a_while(first: int, length: int, seed: int) -> None:
    noise = random.Random(seed)
    machine = Machine(lambda call, point: noise.uniform(2, 80) if first <= call < first + length else 1, running=0.5)
    check_idle(measured(machine))


def test_one_point_that_all_first_passes_find_slow() -> None:
    # 111 ms a layer at half of the slices, 13.6 at all of them; nothing but the order tells.
    slow = Point(SHORT[2], 6, 4)
    machine = Machine(lambda call, point: 100 if point == slow and call < PASSES * POINTS else 1)
    check_idle(measured(machine))
    again = machine.calls[PASSES * POINTS :]
    fewer_and_more = {Point(SHORT[1], 6, 4), Point(SHORT[3], 6, 4), Point(SHORT[2], 3, 4), Point(SHORT[2], 12, 4)}
    assert {*fewer_and_more, slow} <= set(again)


def test_long_sequences_that_all_first_passes_find_slow() -> None:
    slow = Point(LONG[0], 12, 4)
    machine = Machine(lambda call, point: 100 if point == slow and call < PASSES * POINTS else 1)
    check_idle(measured(machine))
    assert {slow, Point(SHORT[2], 12, 4), Point(SHORT[3], 12, 4)} <= set(machine.calls[PASSES * POINTS :])


def test_images_have_no_attention_of_their_own() -> None:
    images = [Workload(197, batch) for batch in (1, 2, 4)]
    compute = measure_compute(Machine(lambda call, point: 1), images, [], WIDTHS, FIDELITIES)
    assert compute.attention.tolist() == [0.0]
    assert compute.layer[:, -1].tolist() == [idle(Point(image, 12, 4)).layer for image in images]


def test_short_sequences_that_take_longer_than_a_long_one() -> None:
    def measure(point: Point) -> Measurement:
        return replace(idle(point), layer=1e-3 if point.workload in LONG else 1.1e-3)

    compute = measured(measure)
    assert compute.attention.tolist() == [0.0, 0.0, 0.0]
    assert compute.layer[:, -1].tolist() == [1e-3, 1e-3, 1e-3, 1e-3, 1e-3], "one sequence takes what it was found to"
    assert not compute.busy


@pytest.mark.parametrize(
    "machine",
    [
        Machine(lambda call, point: random.Random(call).uniform(2, 80)),
        Machine(lambda call, point: 2, running=0.5),
        Machine(lambda call, point: 20 if point == Point(SHORT[1], 3, 4) else 1),
        Machine(lambda call, point: 2.0**call if point.bits == 3 else 1),
    ],
    ids=["noisy", "kept waiting", "falling", "noisy decompression"],
)
def test_busy_all_the_time(machine: Machine) -> None:
    compute = measured(machine)
    assert compute.busy
    check_monotone(compute)
    assert len(machine.calls) <= (PASSES + ROUNDS) * POINTS


def test_small_differences_are_no_doubt() -> None:
    machine = Machine(lambda call, point: random.Random(call).uniform(1, 1.15))
    compute = measured(machine)
    assert not compute.busy
    assert len(machine.calls) == PASSES * POINTS
    check_monotone(compute)


def test_a_tiny_model_is_not_taken_for_a_busy_machine() -> None:
    noise = random.Random(0)

    def measure(point: Point) -> Measurement:
        return Measurement(
            layer=noise.uniform(1e-6, 2e-5), decompress=noise.uniform(0, 2e-5), before=0, after=0, running=1
        )

    compute = measured(measure)
    assert not compute.busy
    check_monotone(compute)


def test_full_fidelity_has_an_order_of_its_own() -> None:
    def measure(point: Point) -> Measurement:
        return replace(idle(point), decompress=1e-6 if point.bits == 32 else 1e-3)

    assert measured(measure).decompress == {**dict.fromkeys((2, 3, 4, 5, 6), 1e-3), 32: 1e-6}


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_always_monotone(data: st.DataObject) -> None:
    seconds = st.floats(1e-7, 1, allow_subnormal=False)

    def measure(point: Point) -> Measurement:
        return data.draw(st.builds(Measurement, seconds, seconds, seconds, seconds, st.floats(0, 1)))

    compute = measure_compute(measure, SHORT[:2], LONG, (3, 12), (2, 4, 6, 32))
    assert (np.diff(compute.layer, axis=0) >= 0).all()
    assert (np.diff(compute.layer, axis=1) >= 0).all()
    assert all((np.diff(each) >= 0).all() for each in (compute.attention, compute.before, compute.after))
    assert compute.decompress[2] <= compute.decompress[4] <= compute.decompress[6]


times = arrays(np.float64, array_shapes(min_dims=1, max_dims=2, max_side=6), elements=st.floats(0, 1e3))


@given(times)
def test_the_largest_monotone_array_below(seconds: np.ndarray) -> None:
    # By brute force: each is the least of all that have at least its tokens and slices.
    expected = np.full(seconds.shape, math.inf)
    for index in np.ndindex(seconds.shape):
        expected[index] = seconds[tuple(slice(start, None) for start in index)].min()
    assert np.array_equal(monotone(seconds), expected)
    assert np.array_equal(monotone(expected), expected), "unchanged where it is monotone"

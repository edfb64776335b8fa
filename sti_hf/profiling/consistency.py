"""Measures compute until it is consistent, on a machine that others may use as well.

A busy machine only makes a forward slower. So every point is measured in several passes, each over all points, and
the fastest pass counts, together with those that agree with it: of these the median, for no machine is always as fast
as it can be. Others must be busy for long to slow all passes of a point. Points that are not to be believed are
measured again; where some are left after a number of rounds, the machine is busy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median

import numpy as np

from sti_hf.planning import Workload

PASSES = 3
ROUNDS = 3
"""In which points are measured again, at most."""

LONGEST_REPEATING = 20.0
"""Seconds of those rounds: where others slow everything down, a forward may take a hundred times as long."""

TOLERANCE = 0.25
"""By how much of itself a time may be exceeded: by another pass, or by the time of a smaller point."""

NOISE_SECONDS = 5e-5
"""Differences of a layer's time that are the clock's, and Python's."""

RUNNING = 0.75
"""Of the time that a forward takes, its thread runs at least this share on a machine that is free."""


@dataclass(frozen=True)
class Point:
    """What a forward is measured with: its workload, and the slices of its layers and their bits."""

    workload: Workload
    width: int
    bits: int

    def is_within(self, other: Point) -> bool:
        """Whether the other one has no less to do, at the same bits: tokens, pairs that attend, slices."""
        own, its = self.workload, other.workload
        attending = own.batch * own.pairs <= its.batch * its.pairs
        return own.all_tokens <= its.all_tokens and attending and self.width <= other.width and self.bits == other.bits


@dataclass(frozen=True)
class Measurement:
    """Medians of a few forwards at a point: seconds of a layer without decompression, of decompressing a layer, and of
    the forward before and after its layers; and the share of it for which its thread was running, not kept waiting by
    others.
    """

    layer: float
    decompress: float
    before: float
    after: float
    running: float

    @property
    def seconds(self) -> float:
        """Of a layer."""
        return self.layer + self.decompress


@dataclass(frozen=True)
class Consistent:
    """The typical measurement of every point, and whether the machine was too `busy` for them to be believed."""

    typical: Mapping[Point, Measurement]
    busy: bool


def measure_until_consistent(
    measure: Callable[[Point], Measurement], points: Sequence[Point], clock: Callable[[], float] = time.monotonic
) -> Consistent:
    """Measures all points in `PASSES` passes, and those that are in doubt in up to `ROUNDS` more, which begin none
    after `LONGEST_REPEATING`.

    In doubt is a point whose two fastest passes disagree, whose thread was kept waiting in its fastest pass, or which
    takes longer than one with more tokens or slices. It is measured again with its neighbours: either may be wrong.
    """
    passes: dict[Point, list[Measurement]] = {point: [] for point in points}
    for _ in range(PASSES):
        for point in points:
            passes[point].append(measure(point))
    until = clock() + LONGEST_REPEATING
    for point in _repeats(passes):
        if clock() > until:
            break
        passes[point].append(measure(point))
    return Consistent({point: _typical(measured) for point, measured in passes.items()}, bool(_doubtful(passes)))


def _repeats(passes: Mapping[Point, Sequence[Measurement]]) -> Iterator[Point]:
    """What to measure again, round by round: each depends on what the one before has added to `passes`."""
    points = list(passes)
    for _ in range(ROUNDS):
        doubtful = _doubtful(passes)
        yield from [point for point in points if any(_are_neighbours(point, other, points) for other in doubtful)]


def _typical(measured: Sequence[Measurement]) -> Measurement:
    """Of each number the median of the passes that agree with the fastest."""
    least = min(one.seconds for one in measured)
    agreeing = [one for one in measured if not _exceeds(one.seconds, least)]
    names = [field.name for field in fields(Measurement)]
    return Measurement(**{name: median(getattr(one, name) for one in agreeing) for name in names})


def _fastest(measured: Sequence[Measurement]) -> Measurement:
    return Measurement(
        layer=min(one.layer for one in measured),
        decompress=min(one.decompress for one in measured),
        before=min(one.before for one in measured),
        after=min(one.after for one in measured),
        running=min(measured, key=lambda one: one.seconds).running,
    )


def _doubtful(passes: Mapping[Point, Sequence[Measurement]]) -> set[Point]:
    fastest = {point: _fastest(measured) for point, measured in passes.items()}
    doubtful = {
        point
        for point, measured in passes.items()
        if fastest[point].running < RUNNING or _exceeds(*sorted(one.seconds for one in measured)[1::-1])
    }
    for small in passes:
        for large in passes:
            if small.is_within(large) and _exceeds(fastest[small].layer, fastest[large].layer):
                doubtful |= {small, large}
    return doubtful


def _exceeds(seconds: float, expected: float) -> bool:
    return seconds > expected * (1 + TOLERANCE) + NOISE_SECONDS


def _are_neighbours(one: Point, other: Point, points: Sequence[Point]) -> bool:
    """Whether they are the same, or next to each other in tokens or in slices."""
    if one.bits != other.bits:
        return False
    tokens = sorted({point.workload.all_tokens for point in points})
    widths = sorted({point.width for point in points})
    apart = abs(tokens.index(one.workload.all_tokens) - tokens.index(other.workload.all_tokens))
    return apart + abs(widths.index(one.width) - widths.index(other.width)) <= 1


def monotone(seconds: np.ndarray) -> np.ndarray:
    """The largest array below this one that falls along no axis: itself, where it does not.

    Noise only adds to a time, so of two times in the wrong order the smaller one is right.
    """
    for axis in range(seconds.ndim):
        reverse = np.flip(seconds, axis)
        seconds = np.flip(np.minimum.accumulate(reverse, axis), axis)
    return seconds

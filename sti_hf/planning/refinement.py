"""Deadlines of a run that keeps T where reading falls behind its plan, and reads more where it runs ahead.

Reads are in plan order, a layer's lowest planes first. One whose turn comes so late that T would be missed is given
up: a planned one where the lowest planes of later layers would come too late after it, one beyond the plan where
anything planned would.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from sti_hf.planning.plan import ExecutionPlan
from sti_hf.planning.timeline import Timeline
from sti_hf.shards.layout import FIDELITIES, FULL, PLANES

REQUIRED, PLANNED, EXTRA = range(3)
"""What a read is for: the lowest fidelity or the preload buffer, the plan's higher planes, planes beyond the plan."""

PLANE_FIDELITIES = tuple(bits for bits in FIDELITIES if bits != FULL)
"""Refined runs are planned with these alone: full weights cannot be cut."""

LONGER = 1.25
"""Planes beyond the plan are those that the planner would choose for a T so many times as long."""

EXTRA_MARGIN = 0.05
"""Share of T that planes beyond the plan leave over, so that they never cost planned ones."""

RECENT_SECONDS = 0.05
"""Reads of the last so many seconds tell how fast reading is now."""

PRIOR_SECONDS = 0.01
"""How much reading at the predicted rate is added to them, so that one slow read alone says little."""

MOMENT = 1e-9
"""Seconds that a read takes at least."""

RUNS = 40
IN_TIME = 0.97
LARGEST_MARGIN = 0.3
"""Runs aim at an end before T that would have kept this share of so many of the last runs in time, but at most this
share of T before it."""


def can_refine(plan: ExecutionPlan) -> bool:
    """Whether a plan's shards all are planes."""
    return plan.strategy == "sti" and not (plan.bits == FULL).any()


def wanted_bits(plan: ExecutionPlan, longer: ExecutionPlan) -> np.ndarray:
    """int64 `[N, M]`: the fidelities to read up to, where there is time: those of a plan for a longer T, its own at
    least. Shards that do not run stay at 0."""
    return np.where(plan.bits > 0, np.maximum(plan.bits, np.minimum(longer.bits, PLANES)), 0)


def refined_staging(planned: Sequence[int], wanted: Sequence[int], staging_bytes: int) -> int:
    """Bytes of a staging buffer for layers of `wanted` bytes: as many in a row fit as do of `planned` bytes into
    `staging_bytes`, and two at least."""
    before, after = (np.concatenate(([0], np.cumsum(sizes))) for sizes in (planned, wanted))
    pairs = after[2:] - after[:-2] if len(planned) > 1 else after[1:]
    fitting = np.triu(before - before[:, None] <= staging_bytes) * (after - after[:, None])
    return max(staging_bytes, int(pairs.max()), int(fitting.max()))


def compute_deadlines(plan: ExecutionPlan) -> np.ndarray:
    """float64 `[n]`, seconds from the start of the forward: when each executed layer's compute must begin for the
    forward to end at T, or when predicted where that is later."""
    timeline = plan.timeline
    compute = timeline.compute_end - timeline.compute_start
    after_layers = timeline.end - timeline.compute_end[-1]
    end = max(plan.target_latency, plan.predicted_latency)
    return end - after_layers - compute[::-1].cumsum()[::-1]


def seconds_per_byte(timeline: Timeline, streamed: Sequence[int]) -> float:
    """What reading was predicted to take, from layers of these streamed bytes. Some waited for room: the fastest."""
    read = timeline.io_end - timeline.io_start
    return min((seconds / size for seconds, size in zip(read.tolist(), streamed) if size), default=0.0)


class LatestStarts:
    """When each read of a run must begin.

    Args:
        plan: that is run.
        byte_seconds: predicted seconds to read a byte.
        steps, sizes, purposes: int64 `[r]`, of every read, in reading order: its position among the executed layers,
            its bytes, and what it is for (`REQUIRED`, `PLANNED`, `EXTRA`).
    """

    def __init__(
        self, plan: ExecutionPlan, byte_seconds: float, steps: np.ndarray, sizes: np.ndarray, purposes: np.ndarray
    ) -> None:
        self._steps, self._purposes = steps, purposes
        self._seconds = sizes * byte_seconds
        # The read before it is still under way when one begins.
        self._own = self._seconds + np.concatenate(([0.0], self._seconds[:-1]))
        deadlines = compute_deadlines(plan)
        margin = EXTRA_MARGIN * plan.target_latency
        self._kinds = [
            (purpose, deadlines - spared, self._needed_up_to(purpose, len(deadlines)))
            for purpose, spared in ((PLANNED, 0.0), (EXTRA, margin))
        ]

    def _needed_up_to(self, purpose: int, layers: int) -> np.ndarray:
        """Seconds `[n]` of the reads up to each layer that come before any for this purpose."""
        before = self._purposes < purpose
        return np.bincount(self._steps[before], self._seconds[before], minlength=layers).cumsum()

    def at(self, pace: float, margin: float = 0.0) -> np.ndarray:
        """float64 `[r]`, seconds from the start of the forward, infinity for required ones.

        `pace`: how many times as long as predicted reads take now; `margin`: seconds by which to end before T.
        """
        latest = np.full(len(self._steps), np.inf)
        for purpose, deadlines, needed in self._kinds:
            left = deadlines - margin - pace * needed
            earliest = np.minimum.accumulate(left[::-1])[::-1] + pace * needed
            chosen = self._purposes == purpose
            latest[chosen] = earliest[self._steps[chosen]] - pace * self._own[chosen]
        return latest

    def pace(self, times: np.ndarray, now: float) -> float:
        """How many times as long as predicted recent reads took, 1 at least.

        `times` `native.TIMING` `[r]`: when each began and ended, NaN where it has not; `now` on the same clock.
        """
        since = now - RECENT_SECONDS
        begun = ~np.isnan(times["start"]) & ~(times["end"] <= since)
        start, end, seconds = times["start"][begun], times["end"][begun], self._seconds[begun]
        ended = ~np.isnan(end)
        # Of those that are still under way nobody knows how far they are: all that can be said is that they took at
        # least so long, which tells when the disk stands still.
        return max(
            1.0,
            _pace(start[ended], end[ended], seconds[ended], since),
            _pace(start, np.where(ended, end, now), seconds, since),
        )


def _pace(start: np.ndarray, end: np.ndarray, predicted: np.ndarray, since: float) -> float:
    """Seconds in which any of these reads was under way since a moment, over those predicted for that part of them."""
    if not len(start):
        return 1.0
    recent = np.maximum(start, since)
    covered = np.maximum.accumulate(np.concatenate((recent[:1], end[:-1])))
    busy = np.maximum(end - np.maximum(recent, covered), 0.0).sum()
    part = (end - recent) / np.maximum(end - start, MOMENT)
    return float((PRIOR_SECONDS + busy) / (PRIOR_SECONDS + (predicted * part).sum()))


class Margin:
    """How long before T runs have to aim to end, as the last runs tell: nothing foretells the next burst on a disk."""

    def __init__(self, target_latency: float) -> None:
        self.target_latency = target_latency
        # Before there are so many, the others count as in time: one slow run is no reason.
        self._needed = deque([0.0] * RUNS, maxlen=RUNS)

    @property
    def seconds(self) -> float:
        """The margin."""
        needed = float(np.quantile(self._needed, IN_TIME))
        return min(max(needed, 0.0), LARGEST_MARGIN * self.target_latency)

    def learn(self, late: float) -> None:
        """Takes note of a run that aimed at this margin: by how many seconds it missed T, or kept it (negative)."""
        self._needed.append(self.seconds + late)

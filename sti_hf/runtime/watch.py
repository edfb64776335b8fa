"""Compares what inferences take with what was promised and predicted."""

from __future__ import annotations

import warnings
from collections import deque

from sti_hf.runtime.timeline import RunTimeline

INFERENCES = 10
MISSES = 5
"""Of the last so many inferences, so many must go wrong for a warning."""

LATE = 1.05
WRONG = 1.5
"""How many times as long as T, or as predicted, an inference takes that counts as missed, or as wrongly predicted."""


class Watch:
    """Warns, once, where T is missed or predictions are wrong again and again."""

    def __init__(self) -> None:
        self._missed: deque[bool] = deque(maxlen=INFERENCES)
        self._wrong: deque[bool] = deque(maxlen=INFERENCES)
        self._warned = False

    def note(self, run: RunTimeline) -> None:
        """Takes note of an inference. One that no plan could do in T is not missed; it was announced."""
        if run.predicted <= 0:  # a plan that was made without a device profile
            return
        self._missed.append(run.predicted <= run.target_latency and run.total > LATE * run.target_latency)
        self._wrong.append(not run.predicted / WRONG <= run.total <= run.predicted * WRONG)
        if self._warned or max(sum(self._missed), sum(self._wrong)) < MISSES:
            return
        self._warned = True
        warnings.warn(
            f"{sum(self._missed)} of the last {len(self._missed)} inferences missed the target latency of "
            f"{run.target_latency * 1e3:.0f} ms, and {sum(self._wrong)} took much more or less than predicted (the "
            f"last {run.total * 1e3:.0f} ms, predicted {run.predicted * 1e3:.0f}): measure this device again while it "
            "is idle, with `sti profile-device STORE`"
            + (", or ask for a longer target_latency." if sum(self._missed) >= MISSES else "."),
            stacklevel=2,
        )

"""What was found out about one setting on one task."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval.glue_runs.accuracy import Accuracy
from eval.glue_runs.settings import STI, Setting


@dataclass(frozen=True)
class Streamed:
    """How the model that runs from shards answered some sentences, against the plan's weights in a stock model.

    `same` of `sentences` answers are the same; `largest_change` is that of a logit.
    """

    sentences: int
    same: int
    largest_change: float


@dataclass(frozen=True)
class Row:
    """One setting: its plan, times (seconds), bytes, and accuracy (points).

    `mean_bits` are those of the shards that run. `admits_three_bits`: T and S admit the whole model with three bits on
    average; None for baselines.
    """

    setting: Setting
    feasible: bool | None
    predicted: float
    submodel: tuple[int, int]
    mean_bits: float
    fidelity_counts: dict[int, int]
    admits_three_bits: bool | None
    cold: list[float]
    back_to_back: list[float]
    bytes_read: float
    row_bytes_read: float
    as_planned: bool
    memory: dict[str, int]
    accuracy: Accuracy
    streamed: Streamed | None

    @property
    def is_sti(self) -> bool:
        """Whether this is ours and no baseline."""
        return self.setting.strategy == STI

    @property
    def metric(self) -> float:
        """The task's leading metric, points."""
        return self.accuracy.metric

    @property
    def cold_p50(self) -> float:
        """Median of the cold forwards, seconds."""
        return float(np.median(self.cold))

    def keeps(self, target: float) -> bool:
        """Whether it is predicted to keep T (seconds)."""
        return self.predicted <= target

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        percentiles = {
            f"{name}_p{percent}": float(np.percentile(getattr(self, name), percent))
            for name in ("cold", "back_to_back")
            for percent in (50, 95)
        }
        return {**asdict(self), **percentiles}

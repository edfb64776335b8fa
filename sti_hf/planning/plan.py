"""ExecutionPlan: what runs, at which fidelity, what is preloaded, and the times that this predicts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from sti_hf.errors import PlanError
from sti_hf.forking import cached_property
from sti_hf.planning.summary import summarize
from sti_hf.planning.timeline import Timeline
from sti_hf.planning.workload import Workload
from sti_hf.shards.layout import FIDELITIES, FULL, KINDS, kinds_of

VERSION = 3


@dataclass(frozen=True, eq=False)
class ExecutionPlan:
    """One inference, planned.

    Attributes:
        strategy: "sti" or a baseline. "load_exec" reads everything before the first layer computes.
        allocator: that chose the fidelities; None where none did.
        fidelities: that could be chosen.
        target_latency: T, seconds.
        preload_budget: S, bytes.
        workload: of the forward that is planned; T is meant for it.
        layers: the n layers that run, in order.
        bits: int64 `[N, M]`, the fidelity of every shard, 0 = not run.
        preloaded_pieces: bool `[N, KINDS, M]`, the pieces that the preload buffer holds.
        preload_bytes: that reading these takes, whole blocks.
        streamed_bytes: that one inference reads of shards once the preload buffer is filled.
        staging_bytes: size of the staging buffer.
        timeline: predicted, on a filled preload buffer.
        first_latency: seconds of a forward that fills the preload buffer as well.
        distortion: predicted by the importance profile; None where there was none to ask.
        submodels: the rule by which the submodel was chosen ("measured", "any", "none"); None for a baseline.
        accuracy: metric of the submodel at 6 bits, as far as the importance profile has measured it; else None.
        staging_budget: bound in bytes that the staging buffer was held to, what a memory budget leaves for it
            included; None: there was none.
    """

    strategy: str
    allocator: str | None
    fidelities: tuple[int, ...]
    target_latency: float
    preload_budget: int
    workload: Workload
    layers: tuple[int, ...]
    bits: np.ndarray
    preloaded_pieces: np.ndarray
    preload_bytes: int
    streamed_bytes: int
    staging_bytes: int
    timeline: Timeline
    first_latency: float
    distortion: float | None
    submodels: str | None = None
    accuracy: float | None = None
    staging_budget: int | None = None

    @property
    def submodel(self) -> tuple[int, int]:
        """(n, m): layers, and slices of each, that run."""
        return len(self.layers), int((self.bits[self.layers[0]] > 0).sum())

    @property
    def is_whole(self) -> bool:
        """Whether the whole model runs."""
        return self.submodel == self.bits.shape

    @cached_property
    def is_full(self) -> bool:
        """Whether every shard that runs does so at full fidelity."""
        return bool(np.isin(self.bits, (0, FULL)).all())

    @property
    def predicted_latency(self) -> float:
        """Seconds of one forward on a filled preload buffer."""
        return self.timeline.end

    @property
    def feasible(self) -> bool:
        """Whether the prediction keeps T."""
        return self.predicted_latency <= self.target_latency

    @cached_property
    def preloaded(self) -> np.ndarray:
        """bool `[N, M]`: shards that run and of which nothing is left to read."""
        whole = np.zeros(self.bits.shape, dtype=bool)
        for fidelity in set(self.bits.ravel().tolist()) - {0}:
            pieces = self.preloaded_pieces[:, list(kinds_of(fidelity))]
            whole |= (self.bits == fidelity) & pieces.all(axis=1)
        return whole

    def fidelity_counts(self) -> dict[int, int]:
        """How many shards run at each fidelity."""
        bits, counts = np.unique(self.bits[self.bits > 0], return_counts=True)
        return dict(zip(bits.tolist(), counts.tolist()))

    def summary(self) -> str:
        """The plan as plain text: the grid of fidelities and the predicted timeline."""
        return summarize(self)

    def to_json(self) -> str:
        """The plan as JSON; `from_json` gives it back exactly. Some entries are for the reader only."""
        content: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        content["workload"] = asdict(self.workload)
        content["bits"] = self.bits.tolist()
        content["preloaded_pieces"] = np.argwhere(self.preloaded_pieces).tolist()
        content["timeline"] = {
            field.name: np.asarray(getattr(self.timeline, field.name)).tolist() for field in fields(Timeline)
        }
        derived = {name: getattr(self, name) for name in ("submodel", "predicted_latency", "feasible")}
        return json.dumps({"version": VERSION, **derived, **content}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ExecutionPlan:
        """Reads what `to_json` wrote; raises `ValueError` for anything else."""
        try:
            content = json.loads(text)
            if content["version"] != VERSION:
                raise PlanError(f"it has version {content['version']}, this release reads {VERSION}")
            values = {field.name: content[field.name] for field in fields(cls)}
            bits = np.array(values["bits"], dtype=np.int64)
            if bits.ndim != 2 or not np.isin(bits, (0, *FIDELITIES)).all():
                raise PlanError("its bits are not fidelities of a grid")
            pieces = np.zeros((bits.shape[0], KINDS, bits.shape[1]), dtype=bool)
            pieces[tuple(np.array(values["preloaded_pieces"], dtype=np.int64).reshape(-1, 3).T)] = True
            times = values["timeline"]
            end, ready = times.pop("end"), times.pop("ready")
            arrays = {name: np.array(value, dtype=np.float64) for name, value in times.items()}
            values["timeline"] = Timeline(**arrays, end=end, ready=ready)
            values |= {"layers": tuple(values["layers"]), "fidelities": tuple(values["fidelities"])}
            values["workload"] = Workload(**values["workload"])
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise PlanError(f"This is not a plan that can be used: {error}.") from error
        return cls(**(values | {"bits": bits, "preloaded_pieces": pieces}))


def preload_changes(old: ExecutionPlan, new: ExecutionPlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What replanning does to a preload buffer: pieces to keep, to read and to drop, bool `[N, KINDS, M]` each."""
    before, after = old.preloaded_pieces, new.preloaded_pieces
    return before & after, after & ~before, before & ~after

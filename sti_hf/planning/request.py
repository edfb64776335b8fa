"""What a plan is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sti_hf.errors import PlanError
from sti_hf.forking import cached_property
from sti_hf.model.grid import Grid
from sti_hf.planning.cost import DeviceProfile
from sti_hf.planning.importance import ImportanceProfile
from sti_hf.planning.reads import PieceTable
from sti_hf.planning.workload import Workload
from sti_hf.shards.layout import FIDELITIES, FULL, LayerLayout

ROUNDING = 1e-9
"""Seconds of T that no plan uses, so that sums taken in another order still keep T."""


STRATEGIES = ("sti", "load_exec", "std_pipeline", "preload")
ALLOCATORS = ("marginal", "two_pass")
SUBMODELS = ("measured", "any", "none")


@dataclass(frozen=True)
class PlanRequest:
    """A store, a device, and what is wanted of them: everything that a plan depends on.

    Args:
        layouts: of every layer of the store, first to last; all of one grid.
        profile: of the device.
        target_latency: T, seconds: of one forward of the workload.
        preload_budget: S, bytes.
        workload: of the forward that is planned.
        strategy, fidelity: "sti"; or a baseline of `STRATEGIES`, and the bits of all its shards.
        allocator: what chooses fidelities, "marginal" or "two_pass" (the paper's).
        importance: what shards are worth; None: the documented default order.
        submodels: which n x m submodels may run: "measured": those in `submodel_accuracy` within `max_loss` points of
            the whole model; "any": all (the paper's rule); "none": the whole model alone.
        submodel_accuracy: metric, 0 to 1, by (n, m), as far as that was measured.
        max_loss: points, hundredths of the metric.
        submodel: (n, m) that runs, whatever may; None: the best that may. A baseline runs the whole model.
        row_bytes, position_bytes: size of an embedding row that is read by token id, and of all those by position.
        extra_seconds: compute after the layers that the profile does not know, such as a head streamed by rows.
        fidelities: that may be used, none given: all that the store has.
        staging_budget: bound of the staging buffer, bytes; None for what the plan needs.
        memory_budget: bound of preload, staging and working buffer together, bytes; None for none.
        working_bytes: size of the working buffer for submodels of 1, 2, .. M slices; none given: 0.

    Raises `PlanError` for what makes no sense or the store lacks, `ProfileError` for a fidelity not in the profile.
    """

    layouts: tuple[LayerLayout, ...]
    profile: DeviceProfile
    target_latency: float
    preload_budget: int
    workload: Workload
    strategy: str = "sti"
    fidelity: int | None = None
    allocator: str = "marginal"
    importance: ImportanceProfile | None = None
    submodels: str = "measured"
    submodel_accuracy: Mapping[tuple[int, int], float] = field(default_factory=dict)
    max_loss: float = 2.0
    submodel: tuple[int, int] | None = None
    row_bytes: int = 0
    position_bytes: int = 0
    extra_seconds: float = 0.0
    fidelities: tuple[int, ...] = ()
    staging_budget: int | None = None
    memory_budget: int | None = None
    working_bytes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layouts", tuple(self.layouts))
        if not self.layouts or any(layout.grid != self.layouts[0].grid for layout in self.layouts):
            raise PlanError("A plan needs the layouts of all layers of one store.")
        if len(self.layouts) != self.grid.layers:
            raise PlanError(f"A plan needs {self.grid.layers} layouts, one a layer, not {len(self.layouts)}.")
        if not 0 < self.target_latency < math.inf:
            raise PlanError(f"target_latency must be a positive number of seconds, not {self.target_latency!r}.")
        for name in ("preload_budget", "row_bytes", "position_bytes", "extra_seconds", "max_loss"):
            _check_size(name, getattr(self, name))
        for name in ("staging_budget", "memory_budget"):
            if getattr(self, name) is not None:
                _check_size(name, getattr(self, name))
        for name, choices in (("strategy", STRATEGIES), ("allocator", ALLOCATORS), ("submodels", SUBMODELS)):
            if getattr(self, name) not in choices:
                raise PlanError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if (self.fidelity is None) != (self.strategy == "sti"):
            raise PlanError("Give a fidelity for a baseline strategy, and none for strategy 'sti', which plans them.")
        if len(self.working_bytes) not in (0, self.grid.slices):
            raise PlanError(f"working_bytes must have {self.grid.slices} entries, not {len(self.working_bytes)}.")
        for (depth, width), value in self.submodel_accuracy.items():
            if not (1 <= depth <= self.grid.layers and width in self.grid.widths and math.isfinite(value)):
                raise PlanError(f"Accuracy {value!r} of a {depth} x {width} submodel does not fit this store.")
        object.__setattr__(self, "fidelities", self._checked_fidelities())

    def changed(self, **changes: Any) -> PlanRequest:
        """A copy with some fields changed, which shares what follows from the layouts."""
        other = replace(self, **changes)
        other.__dict__["pieces"] = self.pieces
        return other

    def _checked_fidelities(self) -> tuple[int, ...]:
        stored = tuple(bits for bits in FIDELITIES if bits != FULL or self.has_full)
        chosen = tuple(sorted({int(bits) for bits in self.fidelities})) or stored
        for bits in chosen:
            self.check_fidelity(bits)
        return chosen

    def check_fidelity(self, bits: int) -> None:
        """Raises `ValueError` where the store has no such fidelity, or the profile has not measured it."""
        if bits not in FIDELITIES:
            raise PlanError(f"There is no fidelity of {bits!r} bits; choose from {', '.join(map(str, FIDELITIES))}.")
        if bits == FULL and not self.has_full:
            raise PlanError("This store was written without full weights (32 bits); shard the model again with them.")
        self.profile.decompress_weight_seconds(bits)

    @property
    def grid(self) -> Grid:
        """The store's grid."""
        return self.layouts[0].grid

    @property
    def has_full(self) -> bool:
        """Whether every layer has its full weights."""
        return all(layout.full_itemsize for layout in self.layouts)

    @property
    def whole(self) -> tuple[int, int]:
        """(N, M): the submodel that is the whole model."""
        return self.grid.layers, self.grid.slices

    @property
    def lowest(self) -> int:
        """The lowest fidelity that may be used."""
        return self.fidelities[0]

    def working(self, width: int) -> int:
        """Bytes of the working buffer of a submodel of `width` slices."""
        return self.working_bytes[width - 1] if self.working_bytes else 0

    @cached_property
    def pieces(self) -> PieceTable:
        """The pieces of all layers."""
        return PieceTable(self.layouts)

    @cached_property
    def embedding_seconds(self) -> float:
        """Reading the embedding rows, the first IO of a forward."""
        return self.profile.embedding_seconds(self.workload.all_tokens, self.row_bytes, self.position_bytes)

    @cached_property
    def before_seconds(self) -> float:
        """Compute before the first layer, on the embedding rows; shards are read meanwhile."""
        return self.profile.before_layers(self.workload)

    @cached_property
    def after_seconds(self) -> float:
        """Compute after the last layer."""
        return self.profile.after_layers(self.workload) + self.extra_seconds

    def gemm_seconds(self, width: int) -> float:
        """Compute of one layer with `width` slices, without decompression."""
        return self.profile.gemm_seconds(self.workload, width)

    @cached_property
    def shard_decompress(self) -> np.ndarray:
        """Decompression of one shard in seconds, indexed by bits; 0 bits, not run, cost nothing."""
        seconds = np.full(FULL + 1, np.nan)
        seconds[0] = 0.0
        for bits in self.fidelities:
            seconds[bits] = self.grid.slice_weights * self.profile.decompress_weight_seconds(bits)
        return seconds


def _check_size(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise PlanError(f"{name} must be a finite number of at least 0, not {value!r}.")

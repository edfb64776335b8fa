"""What a plan is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sti_hf.architectures.grid import Grid
from sti_hf.errors import PlanError
from sti_hf.planning.cost import DeviceProfile
from sti_hf.planning.reads import PieceTable
from sti_hf.shards.layout import FIDELITIES, FULL, LayerLayout

ROUNDING = 1e-9
"""Seconds of T that no plan uses, so that sums taken in another order still keep T."""


@dataclass(frozen=True)
class PlanRequest:
    """A store, a device, and what is wanted of them.

    Args:
        layouts: of every layer of the store, first to last; all of one grid.
        profile: of the device.
        target_latency: T, seconds.
        preload_budget: S, bytes.
        seq_len: tokens of the inference that is planned.
        row_bytes: size of an embedding row that is read by token id; 0 where there are none.
        position_bytes: size of all rows that are read by position.
        extra_seconds: compute after the layers that the profile does not know, such as a head streamed by rows.
        fidelities: that may be used, none given: all that the store has.
        staging_budget: bound of the staging buffer in bytes; None for what the plan needs.

    Raises `ValueError` for a value that makes no sense, or a fidelity that the store or the profile lacks.
    """

    layouts: tuple[LayerLayout, ...]
    profile: DeviceProfile
    target_latency: float
    preload_budget: int
    seq_len: int
    row_bytes: int = 0
    position_bytes: int = 0
    extra_seconds: float = 0.0
    fidelities: tuple[int, ...] = ()
    staging_budget: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layouts", tuple(self.layouts))
        if not self.layouts or any(layout.grid != self.layouts[0].grid for layout in self.layouts):
            raise PlanError("A plan needs the layouts of all layers of one store.")
        if len(self.layouts) != self.grid.layers:
            raise PlanError(f"A plan needs {self.grid.layers} layouts, one a layer, not {len(self.layouts)}.")
        if not 0 < self.target_latency < math.inf:
            raise PlanError(f"target_latency must be a positive number of seconds, not {self.target_latency!r}.")
        for name in ("preload_budget", "row_bytes", "position_bytes", "extra_seconds", "staging_budget"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise PlanError(f"{name} must be a finite number of at least 0, not {value!r}.")
        if self.seq_len < 1:
            raise PlanError(f"seq_len must be a number of tokens of at least 1, not {self.seq_len!r}.")
        object.__setattr__(self, "fidelities", self._checked_fidelities())

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
    def lowest(self) -> int:
        """The lowest fidelity that may be used."""
        return self.fidelities[0]

    @cached_property
    def pieces(self) -> PieceTable:
        """The pieces of all layers."""
        return PieceTable(self.layouts)

    @cached_property
    def embedding_seconds(self) -> float:
        """Reading the embedding rows, the first IO of a forward."""
        return self.profile.embedding_seconds(self.seq_len, self.row_bytes, self.position_bytes)

    @cached_property
    def fixed_seconds(self) -> float:
        """Compute outside the layers. Taken to follow them: where some comes first, a plan is only faster."""
        return self.profile.fixed_compute(self.seq_len) + self.extra_seconds

    def gemm_seconds(self, width: int) -> float:
        """Compute of one layer with `width` slices, without decompression."""
        return self.profile.gemm_seconds(self.seq_len, width)

    @cached_property
    def shard_decompress(self) -> np.ndarray:
        """Decompression of one shard in seconds, indexed by bits; 0 bits, not run, cost nothing."""
        seconds = np.full(FULL + 1, np.nan)
        seconds[0] = 0.0
        for bits in self.fidelities:
            seconds[bits] = self.grid.slice_weights * self.profile.decompress_weight_seconds(bits)
        return seconds

"""Plans whose only limit is how many bytes one inference reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sti_hf.planning import DeviceProfile, ImportanceProfile, Workload
from sti_hf.planning.planner import ALLOCATORS
from sti_hf.planning.request import PlanRequest
from sti_hf.planning.submodel import Submodel
from sti_hf.shards.layout import FIDELITIES, LayerLayout

SECOND_A_BYTE = DeviceProfile(
    request_seconds=0.0,
    bytes_per_second=1.0,
    row_seconds=0.0,
    delay_per_byte=0.0,
    tokens=(1,),
    widths=(1,),
    layer_seconds=((0.0,),),
    pairs=(1,),
    attention_seconds=(0.0,),
    decompress_seconds=dict.fromkeys(FIDELITIES, 0.0),
    before_seconds=(0.0,),
    after_seconds=(0.0,),
    compute_dtype="float32",
    gemm="default",
)
"""A device on which reading a byte takes a second and all else takes no time: T is then a number of bytes."""


class EqualBytes:
    """The whole model of a store, with as many bytes for its shards as `average` bits everywhere take.

    Between two fidelities the bytes are interpolated. They are those that are read, whole blocks, without a preload
    buffer. `fidelities` are those that may be used, none given: all that the store has. Raises `ValueError` for an
    average below the lowest of them.
    """

    def __init__(self, layouts: Sequence[LayerLayout], average: float, fidelities: Sequence[int] = ()) -> None:
        self._layouts, self._fidelities = tuple(layouts), tuple(fidelities)
        self._ample = self._submodel(float(sum(layout.region_bytes for layout in layouts)))
        usable = self._ample.request.fidelities
        if not usable[0] <= average <= usable[-1]:
            raise ValueError(f"Plans with {usable[0]} to {usable[-1]} bits cannot have {average:g} on average.")
        sizes = [self.bytes_read(self._ample.uniform(bits)) for bits in usable]
        self.budget = int(np.interp(average, usable, sizes))
        # Half a byte more, as plans leave a moment of T for rounding.
        self.submodel = self._submodel(self.budget + 0.5)

    def plan(self, importance: ImportanceProfile, allocator: str) -> np.ndarray:
        """The bits `[N, M]` that an allocator gives."""
        return np.asarray(ALLOCATORS[allocator](self.submodel, importance))

    def bytes_read(self, bits: np.ndarray) -> int:
        """Bytes that one inference reads of shards with these bits `[N, M]`."""
        return int(self._ample.streamed(bits)[0].sum())

    def _submodel(self, target: float) -> Submodel:
        request = PlanRequest(
            self._layouts, SECOND_A_BYTE, target, preload_budget=0, workload=Workload(1), fidelities=self._fidelities
        )
        return Submodel(request, request.grid.layers, request.grid.slices)

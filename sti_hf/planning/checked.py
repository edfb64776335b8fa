"""Plans that were run on calibration texts: what they are worth is known, not predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sti_hf.errors import ProfileError
from sti_hf.shards.layout import FIDELITIES

if TYPE_CHECKING:
    from sti_hf.planning.submodel import Submodel


@dataclass(frozen=True)
class CheckedPlans:
    """Fidelities of the whole grid, and how far the model's outputs moved with them.

    - `bits` uint8 `[K, N, M]`;
    - `distortion` float64 `[K]`: mean of the squared change of the outputs on calibration texts.

    Of the plans that keep T the one with the least distortion is `best`: never one that a cheaper one beats. Plans
    that are beaten are kept too, as they may read other layers, and keep T where the better ones do not.

    Raises `ValueError` where the shapes do not fit, or a value makes no sense.
    """

    bits: np.ndarray
    distortion: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", np.asarray(self.bits, dtype=np.uint8))
        object.__setattr__(self, "distortion", np.asarray(self.distortion, dtype=np.float64))
        if self.bits.ndim != 3 or self.distortion.shape != self.bits.shape[:1]:
            raise ProfileError(
                f"Checked plans must be bits [plans, layers, slices] with a distortion each, not "
                f"{list(self.bits.shape)} with {list(self.distortion.shape)}."
            )
        if not np.isin(self.bits, FIDELITIES).all():
            raise ProfileError(f"Checked plans run every shard, with bits of {', '.join(map(str, FIDELITIES))}.")
        if not (np.isfinite(self.distortion) & (self.distortion >= 0)).all():
            raise ProfileError("Distortions of checked plans must be finite and not negative.")

    def best(self, submodel: Submodel) -> np.ndarray | None:
        """Bits `[N, M]` of the best checked plan that keeps T; None where none does, or `submodel` is no full grid."""
        if (submodel.depth, submodel.width) != self.bits.shape[1:]:
            return None
        for index in np.argsort(self.distortion, kind="stable"):
            bits = self.bits[index].astype(np.int64)
            if np.isin(bits, submodel.request.fidelities).all() and submodel.is_valid(bits):
                return bits
        return None

    def reordered(self, order: np.ndarray) -> CheckedPlans:
        """Slice k of layer l of the result is slice `order[l, k]` of this."""
        return CheckedPlans(np.take_along_axis(self.bits, np.asarray(order)[None], axis=2), self.distortion)

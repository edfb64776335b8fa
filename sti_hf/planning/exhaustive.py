"""The paper's importance: the task's metric with one shard raised and all others low (STI, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sti_hf.errors import ProfileError
from sti_hf.planning.importance import AdditiveImportance
from sti_hf.shards.layout import FIDELITIES, PLANES

if TYPE_CHECKING:
    from typing import Self

_SAME = 12
"""Decimals to which scores must agree to be equal: the rest is rounding."""


class ExhaustiveImportance(AdditiveImportance):
    """Importance of shards by the score of the model in which only they are raised.

    Shards are ranked by that score; where scores are equal (accuracy moves in steps of one example) by the loss. The
    paper's allocator uses nothing but the ranking. For the marginal one a shard's *worth* is how far its score is
    above the lowest of all, plus one step of the metric, with ties spread by their losses over half a step. Its
    distortion falls with the bits as a uniform quantizer's error does, so that raising it from the base fidelity to 6
    bits or more is worth just that: `worth * (4^-bits - 4^-6) / (4^-base - 4^-6)`.

    Args:
        scores: float `[N, M]`, the metric with that shard at full and all others at the base fidelity; higher is
            better.
        losses: float `[N, M]`, the loss of the same model; lower is better.
        base_bits: the base fidelity, 2 to 5.
        base_score: the metric with all shards at the base fidelity.
        base_loss: the loss of that.

    Raises `ValueError` where shapes differ, a number is not finite, or the base is no fidelity below 6 bits.
    """

    method: ClassVar[str] = "exhaustive"

    def __init__(
        self, scores: np.ndarray, losses: np.ndarray, base_bits: int, base_score: float, base_loss: float
    ) -> None:
        self.scores = np.asarray(scores, dtype=np.float64)
        self.losses = np.asarray(losses, dtype=np.float64)
        self.base_bits, self.base_score, self.base_loss = int(base_bits), float(base_score), float(base_loss)
        if self.scores.ndim != 2 or self.scores.shape != self.losses.shape:
            raise ProfileError("scores and losses must have one shape, [layers, slices].")
        if not (np.isfinite(self.scores).all() and np.isfinite(self.losses).all()):
            raise ProfileError("scores and losses must be finite.")
        if self.base_bits not in FIDELITIES or self.base_bits >= PLANES:
            raise ProfileError(f"The base fidelity must be 2 to {PLANES - 1} bits, not {base_bits!r}.")
        errors = 4.0 ** -np.minimum(FIDELITIES, PLANES).astype(np.float64) - 4.0**-PLANES
        super().__init__(self.worth()[..., None] * (errors / (4.0**-self.base_bits - 4.0**-PLANES)))

    def worth(self) -> np.ndarray:
        """What raising each shard from the base fidelity to full is worth, in the metric's unit: float64 `[N, M]`,
        positive."""
        scores = self.scores.round(_SAME)
        steps = np.diff(np.unique(scores))
        step = float(steps.min()) if len(steps) else 1.0
        spread = np.ptp(self.losses)
        ties = (self.losses.max() - self.losses) / spread / 2 if spread else np.zeros_like(self.losses)
        worth: np.ndarray = scores - scores.min() + step * (1 + ties)
        return worth

    def order(self) -> np.ndarray:
        """int `[N, M]`: the slices of every layer, the most important first."""
        return np.argsort(-self.worth(), axis=1, kind="stable")

    def arrays(self) -> dict[str, np.ndarray]:
        """What it is made of; `from_arrays` gives it back."""
        base = np.array([self.base_bits, self.base_score, self.base_loss], dtype=np.float64)
        return {"scores": self.scores, "losses": self.losses, "base": base}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """The profile with these `arrays()`."""
        bits, score, loss = arrays["base"].tolist()
        return cls(arrays["scores"], arrays["losses"], int(bits), score, loss)

    def reordered(self, order: np.ndarray) -> Self:
        """With the slices in another order, int `[N, M]`: slice k of layer l is this one's slice `order[l, k]`."""
        scores, losses = (np.take_along_axis(values, order, axis=1) for values in (self.scores, self.losses))
        return type(self)(scores, losses, self.base_bits, self.base_score, self.base_loss)

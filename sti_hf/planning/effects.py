"""Importance from first-order effects: how the errors of shards add up or cancel in the model's own outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sti_hf.errors import ProfileError
from sti_hf.planning.checked import CheckedPlans
from sti_hf.planning.importance import Distortion, ImportanceProfile, Unit
from sti_hf.shards.layout import FULL, PLANES

LEVELS = tuple(range(2, PLANES + 1))
"""The fidelities that have effects; full has none, and nor has a shard that does not run."""

SHARE = 1.0
"""What the squares of single effects count beside the square of their sum: effects that cancel on the texts measured
do so in part by chance. Of 0, 0.3, 1, 3 and the squares alone, 1 gave the best or nearly the best plans for MiniLM on
SST-2, MRPC and QNLI."""

_NONE = len(LEVELS)
_COLUMNS = {0: _NONE, FULL: _NONE} | {bits: column for column, bits in enumerate(LEVELS)}


class EffectsImportance(ImportanceProfile):
    """Distortion from effects: e_i^b(x) is the first-order change of an output of text x when shard i has b bits.

    The distortion of a plan is `mean_x (sum_i e_i(x))^2 + SHARE * sum_i mean_x e_i(x)^2`: 0 at full fidelity. Errors
    of shards add up or cancel in it, text by text, so that what a raise is worth depends on what else was raised.

    Args:
        effects: `[N, M, len(LEVELS), outputs]`, an output being one direction of one text.
        checked: plans that were run on calibration texts, from which allocators start.
        share: of the squares of single effects.

    Raises `ValueError` where a shape does not fit or an effect is not finite.
    """

    method = "effects"

    def __init__(self, effects: np.ndarray, checked: CheckedPlans | None = None, share: float = SHARE) -> None:
        effects = np.asarray(effects, dtype=np.float32)
        if effects.ndim != 4 or effects.shape[2] != len(LEVELS) or 0 in effects.shape:
            raise ProfileError(
                f"effects must have shape [layers, slices, {len(LEVELS)}, outputs], one entry for each of the "
                f"fidelities {LEVELS}, not {list(effects.shape)}."
            )
        if not np.isfinite(effects).all():
            raise ProfileError("effects must be finite.")
        if not share >= 0:
            raise ProfileError(f"share must not be negative, and is {share!r}.")
        if checked is not None and checked.bits.shape[1:] != effects.shape[:2]:
            raise ProfileError(f"The checked plans are of another grid than the effects, {list(effects.shape[:2])}.")
        self.effects = effects
        self.checked = checked
        self.share = float(share)
        # Squares and products of these are means over the outputs. The last column is that of no effect.
        self.vectors = np.zeros((*effects.shape[:2], len(LEVELS) + 1, effects.shape[3]), dtype=np.float32)
        np.multiply(effects, effects.shape[3] ** -0.5, out=self.vectors[:, :, :-1])
        self.products = self.vectors @ self.vectors.transpose(0, 1, 3, 2)

    def track(self, bits: np.ndarray) -> Distortion:
        return _EffectsDistortion(self, bits)

    def distortion(self, bits: np.ndarray) -> float:
        columns = columns_of(bits)[:, :, None]
        total = np.take_along_axis(self.vectors, columns[..., None], axis=2).sum(axis=(0, 1, 2), dtype=np.float64)
        return float(total @ total) + self.share * float(self._squares(columns).sum())

    def units(self, layers: Sequence[int], width: int) -> list[Unit]:
        worth = self.worth()
        shards = [(layer, i) for layer in layers for i in range(width)]
        shards.sort(key=lambda shard: -worth[shard])
        return [(layer, (i,)) for layer, i in shards]

    def worth(self) -> np.ndarray:
        """What each shard does alone at the lowest fidelity, mean_x e_i(x)^2: float `[N, M]`."""
        return self._squares(np.zeros((*self.effects.shape[:2], 1), dtype=np.int64))

    def order(self) -> np.ndarray:
        """int `[N, M]`: the slices of every layer, the most important first."""
        return np.argsort(-self.worth(), axis=1, kind="stable")

    def reordered(self, order: np.ndarray) -> EffectsImportance:
        """Slice k of layer l of the result is slice `order[l, k]` of this: for a store with another slice order."""
        order = np.asarray(order)
        effects = np.take_along_axis(self.effects, order[:, :, None, None], axis=1)
        checked = self.checked.reordered(order) if self.checked is not None else None
        return EffectsImportance(effects, checked, self.share)

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored: mostly the effects, in float16 (12 x 12 shards on 256 texts: 0.4 MB)."""
        scale = float(np.abs(self.effects).max()) or 1.0
        arrays = {"effects": (self.effects / scale).astype(np.float16), "constants": np.array([scale, self.share])}
        if self.checked is not None:
            arrays |= {"checked_bits": self.checked.bits, "checked_distortion": self.checked.distortion}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> EffectsImportance:
        """The profile that `arrays` gave. Raises `ValueError` or `KeyError` where these are none of one."""
        scale, share = arrays["constants"].tolist()
        checked = None
        if "checked_bits" in arrays:
            checked = CheckedPlans(arrays["checked_bits"], arrays["checked_distortion"])
        return cls(arrays["effects"].astype(np.float32) * scale, checked, share)

    def _squares(self, columns: np.ndarray) -> np.ndarray:
        squares = np.diagonal(self.products, axis1=2, axis2=3)
        return np.take_along_axis(squares, columns, axis=2)[:, :, 0].astype(np.float64)


def columns_of(bits: np.ndarray) -> np.ndarray:
    """Where the effects of fidelities `bits` are, int of the same shape; `len(LEVELS)` where there are none."""
    lookup = np.full(FULL + 1, _NONE)
    lookup[list(LEVELS)] = range(len(LEVELS))
    return lookup[bits]


class _EffectsDistortion(Distortion):
    """Keeps the sum of all effects of every text; products with it are taken for a whole shard, and kept until it
    changes."""

    def __init__(self, profile: EffectsImportance, bits: np.ndarray) -> None:
        self._vectors = profile.vectors
        self._products = profile.products
        self._share = profile.share
        columns = columns_of(bits)
        self._now = columns.tolist()
        picked = np.take_along_axis(profile.vectors, columns[:, :, None, None], axis=2)
        self._total = picked.sum(axis=(0, 1, 2))
        self._falls: dict[tuple[int, int], list[float]] = {}

    def fall(self, unit: Unit, bits: int) -> float:
        layer, slices = unit
        column = _COLUMNS[bits]
        if len(slices) == 1:
            shard = layer, slices[0]
            falls = self._falls.get(shard)
            if falls is None:
                falls = self._falls[shard] = self._shard_falls(*shard)
            return falls[column]
        return self._fall_together(layer, slices, column)

    def change(self, unit: Unit, bits: int) -> None:
        layer, slices = unit
        column, now, vectors = _COLUMNS[bits], self._now[layer], self._vectors[layer]
        for i in slices:
            self._total += vectors[i, column] - vectors[i, now[i]]
            now[i] = column
        self._falls.clear()

    def _shard_falls(self, layer: int, i: int) -> list[float]:
        """The fall of one shard to every fidelity, by column."""
        now, products = self._now[layer][i], self._products[layer, i]
        along = self._vectors[layer, i] @ self._total
        squares = products.diagonal()
        moved = squares - 2 * products[now] + squares[now]
        falls = 2 * (along[now] - along) - moved + self._share * (squares[now] - squares)
        return falls.tolist()

    def _fall_together(self, layer: int, slices: Sequence[int], column: int) -> float:
        now, vectors, products = self._now[layer], self._vectors[layer], self._products[layer]
        rows = list(slices)
        change = vectors[rows, column].sum(axis=0) - vectors[rows, [now[i] for i in rows]].sum(axis=0)
        alone = sum(products[i, now[i], now[i]] - products[i, column, column] for i in rows)
        return float(self._share * alone - change @ (2 * self._total + change))

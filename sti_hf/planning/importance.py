"""What a shard is worth: how much less wrong the model is when it is read at a higher fidelity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sti_hf.errors import ProfileError
from sti_hf.model.grid import Grid
from sti_hf.planning.checked import CheckedPlans
from sti_hf.shards.layout import FIDELITIES, PLANES

if TYPE_CHECKING:
    from sti_hf.planning.submodel import Submodel

Unit = tuple[int, tuple[int, ...]]
"""A layer, and the slices of it that change their fidelity together."""


class Distortion(ABC):
    """The predicted distortion of one bits matrix, kept up to date as units change their fidelity."""

    @abstractmethod
    def fall(self, unit: Unit, bits: int) -> float:
        """By how much the distortion would fall if all slices of the unit went to `bits`."""

    @abstractmethod
    def change(self, unit: Unit, bits: int) -> None:
        """All slices of the unit go to `bits`."""


class ImportanceProfile(ABC):
    """Predicts the distortion of a plan: a number that is 0 for a model at full fidelity, and lower for a better one.

    Distortion is a property of the whole bits matrix, so errors of shards may add up or cancel: `fall` of `track` is
    asked anew after each change, unless the distortions are `additive`. Shards that do not run (0 bits) contribute
    nothing: distortions of different submodels are not comparable.
    """

    additive = False
    """Whether what a raise is worth does not depend on the fidelities of other units."""

    checked: CheckedPlans | None = None
    """Plans that were run on calibration texts."""

    def best_checked(self, submodel: Submodel) -> np.ndarray | None:
        """Bits `[N, M]` of the best checked plan that keeps T, from which allocators start; None where none does."""
        return None if self.checked is None else self.checked.best(submodel)

    @abstractmethod
    def track(self, bits: np.ndarray) -> Distortion:
        """The running distortion of a bits matrix `[N, M]`, from which the allocators work."""

    @abstractmethod
    def distortion(self, bits: np.ndarray) -> float:
        """The predicted distortion of a bits matrix `[N, M]`."""

    @abstractmethod
    def units(self, layers: Sequence[int], width: int) -> list[Unit]:
        """What allocators may raise in these layers with slices 0 .. width - 1, the most important first."""


class AdditiveImportance(ImportanceProfile):
    """Distortions of single shards that add up.

    A shard's rank in the order of importance is the fall from the lowest fidelity to the highest.

    Args:
        distortions: float `[N, M, len(fidelities)]`, of every shard at every fidelity.
        fidelities: ascending.

    Raises `ValueError` where the shape does not fit or a distortion is negative or not finite.
    """

    additive = True

    def __init__(self, distortions: np.ndarray, fidelities: Sequence[int] = FIDELITIES) -> None:
        table = np.asarray(distortions, dtype=np.float64)
        if table.ndim != 3 or table.shape[2] != len(fidelities) or list(fidelities) != sorted(set(fidelities)):
            raise ProfileError(
                f"distortions must have shape [layers, slices, {len(fidelities)}], one entry for each of the "
                f"ascending fidelities {tuple(fidelities)}, not {list(table.shape)}."
            )
        if not (np.isfinite(table) & (table >= 0)).all():
            raise ProfileError("distortions must be finite and not negative.")
        self.table = table
        self.fidelities = tuple(fidelities)
        self._columns = {bits: column for column, bits in enumerate(fidelities)}

    def track(self, bits: np.ndarray) -> Distortion:
        return _AdditiveDistortion(self.table, self._columns, bits)

    def distortion(self, bits: np.ndarray) -> float:
        columns = np.full(max(self.fidelities) + 1, -1)
        columns[list(self.fidelities)] = range(len(self.fidelities))
        picked = np.take_along_axis(self.table, columns[bits][:, :, None], axis=2)[:, :, 0]
        return float(picked[bits > 0].sum())

    def units(self, layers: Sequence[int], width: int) -> list[Unit]:
        worth = self.table[:, :, 0] - self.table[:, :, -1]
        shards = [(layer, i) for layer in layers for i in range(width)]
        shards.sort(key=lambda shard: -worth[shard])
        return [(layer, (i,)) for layer, i in shards]


class _AdditiveDistortion(Distortion):
    def __init__(self, table: np.ndarray, columns: dict[int, int], bits: np.ndarray) -> None:
        self._table = table.tolist()
        self._columns = columns
        self._now = [[columns.get(value, 0) for value in row] for row in bits.tolist()]

    def fall(self, unit: Unit, bits: int) -> float:
        layer, slices = unit
        rows, now, column = self._table[layer], self._now[layer], self._columns[bits]
        if len(slices) == 1:
            row = rows[slices[0]]
            return row[now[slices[0]]] - row[column]
        return sum(rows[i][now[i]] - rows[i][column] for i in slices)

    def change(self, unit: Unit, bits: int) -> None:
        layer, slices = unit
        for i in slices:
            self._now[layer][i] = self._columns[bits]


class LayerOrder(ImportanceProfile):
    """The default where nothing was measured: whole layers, from the first.

    A layer's distortion is taken as `4^-bits`, as of any uniform quantizer, and its weight falls from 2 for the first
    layer to just above 1 for the last, since later layers work on the errors of earlier ones. Weights less than
    `4 x` apart make fidelities even first, and give what remains to the first layers. Layers are raised as a whole:
    fidelities that were mixed blindly inside layers measured worse than the lowest everywhere. Full fidelity is worth
    no more than 6 bits: nothing was measured to be won above that.
    """

    additive = True

    def __init__(self, layers: int) -> None:
        self.weights = [1 + (layers - layer) / layers for layer in range(layers)]

    def track(self, bits: np.ndarray) -> Distortion:
        return _LayerDistortion(self, bits)

    def distortion(self, bits: np.ndarray) -> float:
        errors = np.where(bits == 0, 0.0, 4.0 ** -np.minimum(bits, PLANES).astype(np.float64))
        return float((np.array(self.weights)[:, None] * errors).sum())

    def units(self, layers: Sequence[int], width: int) -> list[Unit]:
        return [(layer, tuple(range(width))) for layer in layers]


class _LayerDistortion(Distortion):
    def __init__(self, profile: LayerOrder, bits: np.ndarray) -> None:
        self._weights = profile.weights
        self._bits = bits[:, 0].tolist()

    def fall(self, unit: Unit, bits: int) -> float:
        layer, slices = unit
        return len(slices) * self._weights[layer] * (_error(self._bits[layer]) - _error(bits))

    def change(self, unit: Unit, bits: int) -> None:
        self._bits[unit[0]] = bits


def _error(bits: int) -> float:
    return 4.0 ** -min(bits, PLANES)


def default_importance(grid: Grid) -> ImportanceProfile:
    """The importance that stands in where none was measured: `LayerOrder`."""
    return LayerOrder(grid.layers)

"""The marginal allocator: IO time is spent where it lowers the predicted distortion most."""

from __future__ import annotations

from collections import Counter
from heapq import heappop, heappush, nlargest

import numpy as np

from sti_hf.planning.bulk import raise_together, shard_seconds
from sti_hf.planning.fidelity import Fidelities
from sti_hf.planning.importance import ImportanceProfile, Unit
from sti_hf.planning.submodel import Submodel
from sti_hf.shards.layout import FULL

SMALL = 24
"""Shards up to which a grid is searched by exchanges."""

EFFORT = 500
"""Shards that the exchanges may change, about; this bounds their time to a few milliseconds."""

MOMENT = 1e-12
"""Seconds that a raise costs at least; by filling a gap between reads it may save some."""

CANDIDATES = 512
"""Units that are tried one by one after the bulk of the raises was made."""

FAILURES = 2
"""Once so many slices of a layer could not be raised from one fidelity to another, the rest are not tried, unless the
grid is small."""

NO_LIMIT = FULL + 1


def marginal(submodel: Submodel, importance: ImportanceProfile) -> np.ndarray:
    """Bits `[n, m]` for a submodel that keeps T at the lowest fidelity.

    From all-lowest up, whichever raise of a unit lowers the predicted distortion most per second of IO and
    compute is made, if it is valid. What a raise costs depends on what was raised around it, since neighbours
    share requests and blocks, so it is priced when its turn comes. Where distortions add up, the raises that come
    first anyway are made all at once. Small grids, where one shard is a large part of the budget, are searched
    further. It is a greedy search: more T or S can, rarely, give a plan that is worse by a fraction of one raise.
    Where the profile has checked plans, the best of those that keep T is what is raised further.
    """
    units = importance.units(submodel.layers, submodel.width)
    checked = importance.best_checked(submodel)
    if checked is not None:
        search = _Search(submodel, importance, units, checked)
        search.fill()
        return np.array(search.state.bits)
    layers = [(layer, tuple(range(submodel.width))) for layer in submodel.layers]
    groups = [units, layers] if len(units) > len(layers) else [units]
    starts = [raise_together(submodel, importance, group) for group in groups] if importance.additive else []

    def distortion(bits: np.ndarray) -> float:
        return importance.distortion(submodel.matrix(bits))

    lowest = submodel.uniform(submodel.request.lowest)
    if submodel.depth * submodel.width <= SMALL:
        both = [unit for group in groups for unit in group]
        return min((_exchanged(submodel, importance, both, start) for start in (lowest, *starts)), key=distortion)
    search = _Search(submodel, importance, units, min(starts, key=distortion, default=lowest))
    search.fill(search.most_worth(max(CANDIDATES // submodel.depth, 4)) if starts else None)
    return np.array(search.state.bits)


def _exchanged(submodel: Submodel, importance: ImportanceProfile, units: list[Unit], start: np.ndarray) -> np.ndarray:
    search = _Search(submodel, importance, units, start)
    search.fill()
    search.improve()
    return np.array(search.state.bits)


class _Search:
    """Fidelities on the way to better ones."""

    def __init__(self, submodel: Submodel, importance: ImportanceProfile, units: list[Unit], bits: np.ndarray) -> None:
        self.state = Fidelities(submodel, bits)
        self.distortion = importance.track(submodel.matrix(bits))
        self.fidelities = submodel.request.fidelities
        io, compute = shard_seconds(submodel)
        self.seconds = dict(zip(self.fidelities, (io + compute).tolist()))
        self.units = units
        self.patience = submodel.width if submodel.depth * submodel.width <= SMALL else FAILURES
        self.layers = submodel.layers
        self.effort = 0

    def most_worth(self, count: int) -> list[int]:
        """Of every layer the units (their indices) that would win most by the next fidelity, at most `count` each."""
        following = dict(zip(self.fidelities, self.fidelities[1:]))
        layers: dict[int, list[tuple[float, int]]] = {layer: [] for layer in self.layers}
        for index, unit in enumerate(self.units):
            bits = following.get(self.state.row(unit[0])[unit[1][0]])
            if bits is not None:
                layers[unit[0]].append((self.distortion.fall(unit, bits), index))
        return [index for falls in layers.values() for _, index in nlargest(count, falls)]

    def fill(self, indices: list[int] | None = None, per_second: bool = True) -> float:
        """Raises units (these, or all) until no raise that lowers the distortion is valid.

        Next is always the raise with the largest fall per second, or the largest fall. Returns the fall in all.
        """
        total, fall = 0.0, 1.0
        indices = list(range(len(self.units))) if indices is None else indices
        while indices and fall > 0:
            # A raise that was worth nothing may be worth something now that others were made.
            fall, indices = self._fill(indices, per_second)
            total += fall
        return total

    def _fill(self, indices: list[int], per_second: bool) -> tuple[float, list[int]]:
        """One pass of `fill`. Returns the fall, and the units of which no higher fidelity was worth anything."""
        heap: list[tuple[float, int, int]] = []
        limits: dict[int, int] = {}
        failures: Counter[tuple[int, int, int]] = Counter()
        worthless: list[int] = []
        total = 0.0

        def push(index: int) -> None:
            best = self._best_raise(self.units[index], limits.get(index, NO_LIMIT), per_second)
            if best is not None and best[0] > 0:
                heappush(heap, (-best[0], index, best[1]))
            elif best is not None:
                worthless.append(index)

        for index in indices:
            push(index)
        while heap:
            key, index, bits = heappop(heap)
            unit = self._part_below(self.units[index], bits)
            fall = self.distortion.fall(unit, bits)
            if fall <= 0:
                push(index)
                continue
            alike = (unit[0], self.state.row(unit[0])[unit[1][0]], bits)
            if failures[alike] < self.patience:
                seconds = self._change(unit, bits)
                rate = fall / max(seconds, MOMENT) if per_second else fall
                if heap and rate < min(-heap[0][0], -key) * (1 - 1e-9):
                    self.state.undo()
                    heappush(heap, (-rate, index, bits))
                    continue
                if self.state.valid:
                    self.distortion.change(unit, bits)
                    total += fall
                    push(index)
                    continue
                self.state.undo()
                failures[alike] += 1
            limits[index] = bits
            push(index)
        return total, worthless

    def _best_raise(self, unit: Unit, limit: int, per_second: bool) -> tuple[float, int] | None:
        """The best raise of a unit to less than `limit` bits: its fall per second (requests left out), and its bits.

        A fall of 0 where all are worth nothing; None where there are none.
        """
        row = self.state.row(unit[0])
        best = None
        for bits in self.fidelities:
            if bits >= limit:
                break
            _, slices = part = self._part_below(unit, bits)
            if slices:
                rate = max(self.distortion.fall(part, bits), 0.0)
                if per_second:
                    rate /= max(sum(self.seconds[bits] - self.seconds[row[i]] for i in slices), MOMENT)
                if best is None or rate > best[0]:
                    best = rate, bits
        return best

    def _part_below(self, unit: Unit, bits: int) -> Unit:
        """The slices of a unit that have less than these bits."""
        layer, slices = unit
        row = self.state.row(layer)
        if len(slices) == 1:
            return unit if row[slices[0]] < bits else (layer, ())
        return layer, tuple(i for i in slices if row[i] < bits)

    def improve(self) -> None:
        """Lowers a unit and gives what this frees to others, again and again while that is better."""
        limit = self.effort + EFFORT
        better = True
        while better:
            better = any(self.effort < limit and self._exchange(*way) for way in self._ways_down())

    def _ways_down(self) -> list[tuple[int, Unit, int]]:
        """All ways to lower one unit (its index, the slices that change, their new bits), the least harmful first."""
        ways = []
        for index, (layer, slices) in enumerate(self.units):
            row = self.state.row(layer)
            for bits in self.fidelities:
                unit = layer, tuple(i for i in slices if row[i] > bits)
                if unit[1]:
                    ways.append((-self.distortion.fall(unit, bits), index, unit, bits))
        return [(index, unit, bits) for _, index, unit, bits in sorted(ways)]

    def _exchange(self, index: int, unit: Unit, bits: int) -> bool:
        """Lowers a unit and raises others; keeps that only if it lowers the distortion."""
        before = [row.copy() for row in self.state.bits]
        loss = -self.distortion.fall(unit, bits)
        for per_second in (True, False):
            self._change(unit, bits)
            self.distortion.change(unit, bits)
            gain = self.fill([other for other in range(len(self.units)) if other != index], per_second)
            if gain <= loss:
                gain += self.fill()
            if self.state.valid and gain > loss * (1 + 1e-9):
                return True
            self._restore(before)
        return False

    def _restore(self, bits: list[list[int]]) -> None:
        for layer, row in zip(self.layers, bits):
            for i, old in enumerate(row):
                if self.state.row(layer)[i] != old:
                    self._change((layer, (i,)), old)
                    self.distortion.change((layer, (i,)), old)

    def _change(self, unit: Unit, bits: int) -> float:
        self.effort += len(unit[1])
        return self.state.change(unit, bits)

"""Many raises at once, for importance profiles whose distortions add up."""

from __future__ import annotations

import numpy as np

from sti_hf.planning.importance import ImportanceProfile, Unit
from sti_hf.planning.submodel import Submodel
from sti_hf.shards.layout import kinds_of

PRICINGS = 3
"""How often prices are adapted to the AIB that turned out to be scarce."""

FLOOR = 1e-2
"""Price of a second that no AIB is short of, so that equal gains for free go to the cheaper."""


def shard_seconds(submodel: Submodel) -> tuple[np.ndarray, np.ndarray]:
    """What one shard takes in seconds of IO (requests left out) and of compute, by position in the request's
    fidelities."""
    request = submodel.request
    sizes = request.layouts[submodel.layers[0]].piece_bytes[:, : submodel.width].mean(axis=1)
    num_bytes = np.array([sizes[list(kinds_of(bits))].sum() for bits in request.fidelities])
    compute = request.shard_decompress[list(request.fidelities)] + request.profile.delay_seconds(num_bytes)
    return num_bytes / request.profile.bytes_per_second, compute


def raise_together(submodel: Submodel, importance: ImportanceProfile, units: list[Unit]) -> np.ndarray:
    """From all-lowest, the longest valid prefix of all raises in the order of what they win per second.

    A second of IO in layer k is spent from AIB(k) and all later ones, a second of compute from AIB(k) and all earlier
    ones. Which of them are scarce shows when the budget is spent: seconds are then priced by that, and the raises
    ordered anew. Returns the best bits `[n, m]` of all orders.
    """
    steps = _Steps(submodel, importance, units)
    scarce = np.zeros(submodel.depth)
    io_price = compute_price = np.ones(submodel.depth)
    found = []
    for _ in range(PRICINGS):
        bits, short = _longest_prefix(submodel, steps, steps.order(io_price, compute_price))
        found.append((importance.distortion(submodel.matrix(bits)), bits))
        # The last AIB is spent by every read alike: that is how seconds were priced.
        if short is None or short == submodel.depth - 1:
            break
        scarce[short] += 1
        prices = scarce / scarce.sum() + FLOOR
        io_price, compute_price = prices[::-1].cumsum()[::-1], prices.cumsum()
    return min(found, key=lambda pair: pair[0])[1]


def _longest_prefix(submodel: Submodel, steps: _Steps, order: np.ndarray) -> tuple[np.ndarray, int | None]:
    """Bits after the raises that fit, and the AIB that was the first to end them; None where none did.

    Where the IO of layers 0 to l has filled AIB(l), raises of later layers go on without those.
    """
    bits = submodel.uniform(submodel.request.lowest)
    scarce = None
    while len(order):
        low, high = 0, len(order)
        while low < high:
            middle = (low + high + 1) // 2
            if submodel.is_valid(steps.apply(bits, order[:middle])):
                low = middle
            else:
                high = middle - 1
        bits = steps.apply(bits, order[:low])
        failed, order = order[low : low + 1], order[low + 1 :]
        if not len(failed):
            break
        position = steps.position[failed[0]]
        left = submodel.budget_left(steps.apply(bits, failed))
        short = np.flatnonzero(left < 0)
        if not len(short):
            # It is a bounded staging buffer that the layer does not fit.
            order = order[steps.position[order] != position]
            continue
        scarce = int(left.argmin()) if scarce is None else scarce
        if short[-1] < position:
            break
        order = order[steps.position[order] > short[-1]]
    return bits, scarce


class _Steps:
    """Raises of units to higher fidelities."""

    def __init__(self, submodel: Submodel, importance: ImportanceProfile, units: list[Unit]) -> None:
        self._fidelities = np.array(submodel.request.fidelities)
        lowest = submodel.uniform(submodel.request.lowest)
        distortion = importance.track(submodel.matrix(lowest))
        self._falls = np.array([[distortion.fall(unit, int(bits)) for bits in self._fidelities] for unit in units])
        self._seconds = shard_seconds(submodel)
        self._sizes = np.array([[len(slices)] for _, slices in units])
        positions = {layer: k for k, layer in enumerate(submodel.layers)}
        self._layer_of = np.array([positions[layer] for layer, _ in units])
        self._unit_of = np.empty((submodel.depth, submodel.width), dtype=np.int64)
        for index, (layer, slices) in enumerate(units):
            self._unit_of[positions[layer], list(slices)] = index

    def order(self, io_price: np.ndarray, compute_price: np.ndarray) -> np.ndarray:
        """Indices of the steps, best first; those of one unit in ascending order. Prices are a layer's, `[n]`."""
        io, compute = self._seconds
        costs = io_price[self._layer_of, None] * io + compute_price[self._layer_of, None] * compute
        rate, self._unit, column = _hull(self._falls, self._sizes * costs)
        self._bits = self._fidelities[column]
        self.position = self._layer_of[self._unit]
        return np.argsort(-rate, kind="stable")

    def apply(self, bits: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The fidelities `[n, m]` after these steps."""
        raised = np.zeros(len(self._layer_of), dtype=np.int64)
        np.maximum.at(raised, self._unit[steps], self._bits[steps])
        return np.maximum(bits, raised[self._unit_of])


def _hull(falls: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From column 0 of every row, again and again to the higher column that wins most per cost while any wins.

    Args: `falls`, `costs` `[units, fidelities]`. Returns rate, row and column of every step.
    """
    rows = np.arange(len(falls))
    now = np.zeros(len(falls), dtype=np.int64)
    steps = [(np.empty(0), now[:0], now[:0])]
    better = np.ones(1)
    while better.any():
        fall = falls - falls[rows, now][:, None]
        cost = np.maximum(costs - costs[rows, now][:, None], 1e-12)
        rate = np.where(np.arange(falls.shape[1]) > now[:, None], fall / cost, 0.0)
        column = rate.argmax(axis=1)
        better = rate[rows, column] > 0
        steps.append((rate[rows, column][better], rows[better], column[better]))
        now = np.where(better, column, now)
    rates, units, columns = zip(*steps)
    return np.concatenate(rates), np.concatenate(units), np.concatenate(columns)

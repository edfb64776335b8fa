"""Which submodel runs: of those that may, the best that keeps T (STI, section 5.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sti_hf.planning.memory import least_memory, memory_splits, memory_too_small
from sti_hf.planning.request import PlanRequest
from sti_hf.planning.submodel import Submodel

POINT = 0.01
"""A point of a metric."""

ROUNDING = 1e-9
"""By how much of a metric a loss may exceed the largest, so that 0.02 is no more than 2 points."""


def choose_submodel(request: PlanRequest, meets: Callable[[Submodel], bool]) -> Submodel | None:
    """The best submodel of those that may run and keep T at the lowest fidelity, which `meets` decides; None where
    none does.

    The most accurate of those whose accuracy was measured. By the rule "any", where none of them keeps T, the one with
    the most shards; of equals the deeper. A submodel is taken to be faster than those that contain it.
    """
    for depth, width in vouched_for(request):
        submodel = Submodel(request, depth, width)
        if meets(submodel):
            return submodel
    return _largest(request, meets) if request.submodels == "any" and request.submodel is None else None


def vouched_for(request: PlanRequest) -> list[tuple[int, int]]:
    """Submodels (n, m) that may run by what is known of them, the best first.

    By the rule "measured" those within `max_loss` points of the whole model, where that was measured too; else the
    whole model alone. By "any", all that were measured. One that the request names is the only one.
    """
    if request.submodel is not None:
        return [request.submodel]
    measured = request.submodel_accuracy
    if request.submodels != "any" and (request.submodels == "none" or request.whole not in measured):
        return [request.whole]
    least = measured[request.whole] - request.max_loss * POINT - ROUNDING if request.submodels == "measured" else None
    known = [(value, n * m, n, m) for (n, m), value in measured.items() if least is None or value >= least]
    return [(depth, width) for _, _, depth, width in sorted(known, reverse=True)]


def last_resort(request: PlanRequest) -> Submodel:
    """What runs where nothing keeps T.

    The one that is named; else the fastest submodel by the rule "any", else the whole model, or where memory is too
    small for that the best that may run. Raises `PlanError` where memory is too small for all of them.
    """
    if request.submodel is not None:
        return _fitting(request, [request.submodel])[0]
    if request.submodels == "any":
        widths = reversed(request.grid.widths)
        return min(_fitting(request, ((1, width) for width in widths)), key=_lowest_latency)
    return _fitting(request, [request.whole, *vouched_for(request)])[0]


def _fitting(request: PlanRequest, sizes: Iterable[tuple[int, int]]) -> list[Submodel]:
    submodels = [Submodel(request, depth, width) for depth, width in sizes]
    fitting = [submodel for submodel in submodels if memory_splits(submodel)]
    if not fitting:
        raise memory_too_small(request, min(map(least_memory, submodels)))
    return fitting


def _lowest_latency(submodel: Submodel) -> float:
    return submodel.latency(submodel.uniform(submodel.request.lowest))


def _largest(request: PlanRequest, meets: Callable[[Submodel], bool]) -> Submodel | None:
    best = None
    for width in reversed(request.grid.widths):
        shards = best.depth * best.width if best else 1
        best = _deepest(request, meets, width, -(-shards // width)) or best
    return best


def _deepest(request: PlanRequest, meets: Callable[[Submodel], bool], width: int, least: int) -> Submodel | None:
    """The deepest submodel of a width that keeps T; None where it has fewer than `least` layers."""
    low, high = least - 1, request.grid.layers
    found = None
    for depth in (least, high):
        if low < depth <= high:
            candidate = Submodel(request, depth, width)
            if not meets(candidate):
                high = depth - 1
            else:
                low, found = depth, candidate
    while low < high and found:
        candidate = Submodel(request, (low + high + 1) // 2, width)
        if meets(candidate):
            low, found = candidate.depth, candidate
        else:
            high = candidate.depth - 1
    return found

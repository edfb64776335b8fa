"""The paper's allocator: fidelities for a submodel in two passes."""

from __future__ import annotations

from collections import Counter

import numpy as np

from sti_hf.planning.fidelity import Fidelities
from sti_hf.planning.importance import ImportanceProfile, Unit
from sti_hf.planning.submodel import Submodel

FAILURES = 4
"""Once so many slices of a layer could not be raised to the highest fidelity, the rest are raised step by step."""


def two_pass(submodel: Submodel, importance: ImportanceProfile) -> np.ndarray:
    """The paper's allocation (section 5.4.2): bits `[n, m]` for a submodel that keeps T at the lowest fidelity.

    First the highest fidelity that is valid everywhere, or the best valid plan where the profile has checked some.
    Then every unit, the most important first, is raised to the highest there is; where that is not valid, step by step
    as high as it is.
    """
    return _second_pass(submodel, importance, _first_passes(submodel, importance)[0])


def better_two_pass(submodel: Submodel, importance: ImportanceProfile) -> np.ndarray:
    """`two_pass`, or what comes of it when the first pass takes the fidelity below the highest, if that is better by
    the predicted distortion.

    A fidelity that has just become valid everywhere leaves nothing to raise the important shards with, so that by the
    paper's first pass more time can give a worse plan.
    """
    plans = [_second_pass(submodel, importance, first) for first in _first_passes(submodel, importance)]
    return min(plans, key=lambda bits: importance.distortion(submodel.matrix(bits)))


def _first_passes(submodel: Submodel, importance: ImportanceProfile) -> list[np.ndarray]:
    """The highest uniform fidelity that is valid, and the one below it; or the best checked plan alone."""
    checked = importance.best_checked(submodel)
    if checked is not None:
        return [checked]
    lowest, *higher = submodel.request.fidelities
    valid = [lowest, *(bits for bits in higher if submodel.is_valid(submodel.uniform(bits)))]
    return [submodel.uniform(bits) for bits in valid[:-3:-1]]


def _second_pass(submodel: Submodel, importance: ImportanceProfile, first: np.ndarray) -> np.ndarray:
    state = Fidelities(submodel, first)
    failures: Counter[int] = Counter()
    for layer, slices in importance.units(submodel.layers, submodel.width):
        row = state.row(layer)
        steps = [bits for bits in submodel.request.fidelities if bits > max(row[i] for i in slices)]
        if steps and failures[layer] < FAILURES:
            if _raised(state, (layer, slices), steps[-1]):
                continue
            failures[layer] += 1
        for step in steps:
            if not _raised(state, (layer, slices), step):
                break
    return np.array(state.bits)


def _raised(state: Fidelities, unit: Unit, bits: int) -> bool:
    state.change(unit, bits)
    if not state.valid:
        state.undo()
        return False
    return True

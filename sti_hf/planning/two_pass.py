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
    state = Fidelities(submodel, _first_pass(submodel, importance))
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


def _first_pass(submodel: Submodel, importance: ImportanceProfile) -> np.ndarray:
    checked = importance.best_checked(submodel)
    if checked is not None:
        return checked
    valid = (bits for bits in submodel.request.fidelities[1:] if submodel.is_valid(submodel.uniform(bits)))
    return submodel.uniform(max(valid, default=submodel.request.lowest))


def _raised(state: Fidelities, unit: Unit, bits: int) -> bool:
    state.change(unit, bits)
    if not state.valid:
        state.undo()
        return False
    return True

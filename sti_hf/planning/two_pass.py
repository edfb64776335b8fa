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

    First the highest fidelity that is valid everywhere. Then every unit, the most important first, is raised to the
    highest there is; where that is not valid, step by step as high as it is.
    """
    fidelities = submodel.request.fidelities
    bits = max(bits for bits in fidelities if bits == fidelities[0] or submodel.is_valid(submodel.uniform(bits)))
    state = Fidelities(submodel, submodel.uniform(bits))
    steps = [other for other in fidelities if other > bits]
    failures: Counter[int] = Counter()
    for unit in importance.units(submodel.layers, submodel.width) if steps else ():
        layer, _ = unit
        if failures[layer] < FAILURES:
            if _raised(state, unit, steps[-1]):
                continue
            failures[layer] += 1
        for step in steps:
            if not _raised(state, unit, step):
                break
    return np.array(state.bits)


def _raised(state: Fidelities, unit: Unit, bits: int) -> bool:
    state.change(unit, bits)
    if not state.valid:
        state.undo()
        return False
    return True

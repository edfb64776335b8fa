"""The paper's allocator: fidelities for a submodel in two passes."""

from __future__ import annotations

import numpy as np

from sti_hf.planning.fidelity import Fidelities
from sti_hf.planning.importance import ImportanceProfile, Unit
from sti_hf.planning.submodel import Submodel


def two_pass(submodel: Submodel, importance: ImportanceProfile) -> np.ndarray:
    """The paper's allocation (section 5.4.2).

    First the highest fidelity that is valid everywhere. Then every unit, the most important first, is raised to the
    highest fidelity that is valid.
    """
    fidelities = submodel.request.fidelities
    bits = max(bits for bits in fidelities if bits == fidelities[0] or submodel.is_valid(submodel.uniform(bits)))
    state = Fidelities(submodel, submodel.uniform(bits))
    higher = [other for other in fidelities if other > bits]
    for unit in importance.units(submodel.layers, submodel.width):
        # Where the next fidelity does not fit, none above it does.
        for raised in (higher[:1], higher[:0:-1]):
            if not _raise_to_first_valid(state, unit, raised):
                break
    return np.array(state.bits)


def _raise_to_first_valid(state: Fidelities, unit: Unit, fidelities: list[int]) -> bool:
    for bits in fidelities:
        state.change(unit, bits)
        if state.valid:
            return True
        state.undo()
    return False

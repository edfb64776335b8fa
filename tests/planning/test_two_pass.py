"""The paper's allocator against its description."""

from __future__ import annotations

import numpy as np
import pytest

from sti_hf.planning import ImportanceProfile, LayerOrder
from sti_hf.planning.request import PlanRequest
from sti_hf.planning.submodel import Submodel
from sti_hf.planning.two_pass import two_pass
from tests.planning.problems import make_importance, naive_latency, random_requests


def as_described(request: PlanRequest, submodel: Submodel, importance: ImportanceProfile) -> np.ndarray:
    """Highest uniform fidelity; then each unit, in order of importance, to the highest, or step by step."""

    def keeps(bits: np.ndarray) -> bool:
        return naive_latency(request, bits, submodel.layers) <= request.target_latency

    uniform = max(b for b in request.fidelities if b == request.lowest or keeps(submodel.matrix(submodel.uniform(b))))
    bits = submodel.matrix(submodel.uniform(uniform))
    for layer, slices in importance.units(submodel.layers, submodel.width):
        higher = [fidelity for fidelity in request.fidelities if fidelity > uniform]
        for fidelity in [*higher[-1:], *higher]:
            raised = bits.copy()
            raised[layer, list(slices)] = fidelity
            kept = keeps(raised)
            bits = raised if kept else bits
            # Done at the highest, or at the first step that does not fit.
            if kept == (fidelity == higher[-1]):
                break
    return bits[list(submodel.layers)][:, : submodel.width]


@pytest.mark.parametrize("whole_layers", [False, True])
def test_two_pass_is_the_papers(whole_layers: bool) -> None:
    raised = 0
    for request, seed in random_requests(30, [(2, 3), (3, 2), (4, 4)], seed=3):
        layers, slices = request.grid.layers, request.grid.slices
        importance = LayerOrder(layers) if whole_layers else make_importance(layers, slices, seed)
        submodel = Submodel(request, layers, slices)
        bits = two_pass(submodel, importance)
        assert (bits == as_described(request, submodel, importance)).all()
        raised += (bits > request.lowest).any()
    assert raised > 10

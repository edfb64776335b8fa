"""Submodels: their latency, and the choice among them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.planning import PlanRequest, Workload
from sti_hf.planning.submodel import Submodel, accumulated_io_budget, budget_left, kept_layers
from tests.planning.problems import make_layouts, make_profile, make_request, naive_latency

LAYERS, SLICES = 4, 5


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, LAYERS),
    st.integers(1, SLICES),
    st.floats(0, 1),
    st.sampled_from([0.0, 1e-3, 0.05, 0.5]),
)
@settings(max_examples=40, deadline=None)
def test_latency_is_that_of_the_pipeline_event_by_event(
    seed: int, depth: int, width: int, preload: float, before: float
) -> None:
    random = np.random.default_rng(seed)
    layouts = make_layouts(LAYERS, SLICES, ("tiny", "minilm")[random.integers(2)], seed=seed)
    profile = make_profile(bytes_per_second=float(random.choice([20e6, 200e6, 2e9])), widths=(1, SLICES))
    profile = replace(profile, before_seconds=(before, before))
    request = make_request(layouts, profile, preload_budget=int(preload * 2e6), extra_seconds=0.01)
    submodel = Submodel(request, depth, width)
    bits = random.choice(request.fidelities, size=(depth, width))
    expected = naive_latency(request, submodel.matrix(bits), submodel.layers)
    assert submodel.latency(bits) == pytest.approx(expected, rel=1e-9)
    for nearly, valid in ((1.0001, True), (0.9999, False)):
        hurried = Submodel(replace(request, target_latency=expected * nearly), depth, width)
        assert hurried.is_valid(bits) == valid


def test_the_accumulated_io_budget_of_the_paper() -> None:
    request = make_request(make_layouts(3, 2), target_latency=1.0, row_bytes=0)
    compute = np.array([0.1, 0.2, 0.3])
    slack = 1.0 - request.after_seconds - compute.sum()
    expected = [slack, slack + 0.1, slack + 0.3]
    assert accumulated_io_budget(request, compute) == pytest.approx(expected, abs=1e-8)


def test_compute_before_the_layers_is_no_reason_not_to_read() -> None:
    request = make_request(
        make_layouts(3, 2), make_profile(before_seconds=(0.4, 0.4)), target_latency=1.0, row_bytes=0
    )
    compute = np.array([0.1, 0.1, 0.1])
    spare = 1.0 - request.after_seconds - compute.sum()

    def left(*io: float) -> list[float]:
        return budget_left(request, compute, np.array(io)).tolist()

    assert left(0.0, 0.0, 0.0) == pytest.approx([spare - 0.4, spare - 0.3, spare - 0.2], abs=1e-8)
    assert left(0.4, 0.0, 0.0) == left(0.0, 0.0, 0.0), "it is read meanwhile"
    assert left(0.4, 0.3, 0.0) == pytest.approx([spare - 0.4, spare - 0.6, spare - 0.5], abs=1e-8)


def test_a_submodel_keeps_the_first_layers() -> None:
    assert kept_layers(6, 2) == (0, 1)
    assert kept_layers(6, 6) == tuple(range(6))


def test_requests_that_make_no_sense() -> None:
    layouts = make_layouts(2, 3, full_itemsize=0)
    for changes, match in (
        ({"target_latency": 0.0}, "target_latency"),
        ({"target_latency": float("nan")}, "target_latency"),
        ({"preload_budget": -1}, "preload_budget"),
        ({"memory_budget": -1}, "memory_budget"),
        ({"max_loss": -1.0}, "max_loss"),
        ({"submodels": "some"}, "submodels must be one of measured, any, none"),
        ({"working_bytes": (1, 2)}, "working_bytes must have 3 entries"),
        ({"row_bytes": -4}, "row_bytes"),
        ({"position_bytes": -4}, "position_bytes"),
        ({"extra_seconds": float("inf")}, "extra_seconds"),
        ({"staging_budget": -1}, "staging_budget"),
        ({"submodel_accuracy": {(3, 1): 0.5}}, "does not fit this store"),
        ({"submodel_accuracy": {(1, 0): 0.5}}, "does not fit this store"),
        ({"submodel_accuracy": {(1, 1): float("nan")}}, "does not fit this store"),
        ({"fidelities": (7,)}, "7 bits"),
        ({"fidelities": (32,)}, "without full weights"),
    ):
        with pytest.raises(ValueError, match=match):
            make_request(layouts, **changes)
    with pytest.raises(ValueError, match="layouts"):
        make_request(layouts[:1])
    with pytest.raises(ValueError, match="layouts"):
        PlanRequest((), make_profile(), 1.0, 0, Workload(128))


def test_a_store_without_full_weights_plans_without_them() -> None:
    assert make_request(make_layouts(2, 3, full_itemsize=0)).fidelities == (2, 3, 4, 5, 6)
    assert make_request(make_layouts(2, 3)).fidelities == (2, 3, 4, 5, 6, 32)
    assert make_request(make_layouts(2, 3), fidelities=(4, 2)).fidelities == (2, 4)

"""Submodels: their latency, and the choice among them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.planning.request import PlanRequest
from sti_hf.planning.submodel import (
    Submodel,
    accumulated_io_budget,
    choose_submodel,
    fastest_submodel,
    kept_layers,
)
from tests.planning.problems import make_layouts, make_profile, make_request, naive_latency

LAYERS, SLICES = 4, 5


def keeps(submodel: Submodel) -> bool:
    return submodel.is_valid(submodel.uniform(submodel.request.lowest))


@given(st.integers(0, 2**32 - 1), st.integers(1, LAYERS), st.integers(1, SLICES), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_latency_is_that_of_the_pipeline_event_by_event(seed: int, depth: int, width: int, preload: float) -> None:
    random = np.random.default_rng(seed)
    layouts = make_layouts(LAYERS, SLICES, ("tiny", "minilm")[random.integers(2)], seed=seed)
    profile = make_profile(bytes_per_second=float(random.choice([20e6, 200e6, 2e9])), widths=(1, SLICES))
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
    slack = 1.0 - request.fixed_seconds - compute.sum()
    expected = [slack, slack + 0.1, slack + 0.3]
    assert accumulated_io_budget(request, compute) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("share", np.linspace(0.02, 1.05, 18))
@pytest.mark.parametrize("budget", [0, 400_000])
def test_the_chosen_submodel_is_the_largest_that_keeps_the_target(share: float, budget: int) -> None:
    layouts = make_layouts(LAYERS, SLICES)
    request = make_request(layouts, make_profile(widths=(1, SLICES)), preload_budget=budget)
    whole = Submodel(request, LAYERS, SLICES)
    request = replace(request, target_latency=share * whole.latency(whole.uniform(2)))
    sizes = itertools.product(range(1, LAYERS + 1), range(1, SLICES + 1))
    fitting = [(n * m, n, m) for n, m in sizes if keeps(Submodel(request, n, m))]
    chosen = choose_submodel(request, keeps)
    assert (chosen and (chosen.depth, chosen.width)) == (max(fitting)[1:] if fitting else None)


def test_measured_accuracy_decides() -> None:
    request = make_request(make_layouts(LAYERS, SLICES))
    accuracy = {(4, 5): 0.8, (3, 5): 0.9, (2, 5): 0.9, (1, 1): 0.5}
    assert size(choose_submodel(request, keeps, accuracy)) == (3, 5)
    slower = [(3, 5), (4, 5)]
    assert size(choose_submodel(request, lambda s: (s.depth, s.width) not in slower, accuracy)) == (2, 5)
    # None of those that were measured: the most shards.
    assert size(choose_submodel(request, lambda s: (s.depth, s.width) == (1, 5), accuracy)) == (1, 5)


def size(submodel: Submodel | None) -> tuple[int, int] | None:
    return submodel and (submodel.depth, submodel.width)


@pytest.mark.parametrize("accuracy", [{(5, 1): 0.5}, {(1, 0): 0.5}, {(1, 1): float("nan")}])
def test_accuracy_that_does_not_fit_the_store(accuracy: dict[tuple[int, int], float]) -> None:
    with pytest.raises(ValueError, match="does not fit this store"):
        choose_submodel(make_request(make_layouts(LAYERS, SLICES)), keeps, accuracy)


def test_of_equals_the_deeper() -> None:
    request = make_request(make_layouts(4, 4))
    chosen = choose_submodel(request, lambda submodel: submodel.depth * submodel.width <= 8)
    assert size(chosen) == (4, 2)


def test_the_fastest_submodel_has_one_layer() -> None:
    profile = make_profile(widths=(1, 2, SLICES), layer_seconds=((3e-3, 1e-3, 2e-3), (6e-3, 2e-3, 4e-3)))
    request = make_request(make_layouts(LAYERS, SLICES, "tiny"), profile)
    assert size(fastest_submodel(request, 2)) == (1, 2)


def test_a_submodel_keeps_the_first_layers() -> None:
    assert kept_layers(6, 2) == (0, 1)
    assert kept_layers(6, 6) == tuple(range(6))


def test_requests_that_make_no_sense() -> None:
    layouts = make_layouts(2, 3, full_itemsize=0)
    for changes, match in (
        ({"target_latency": 0.0}, "target_latency"),
        ({"target_latency": float("nan")}, "target_latency"),
        ({"preload_budget": -1}, "preload_budget"),
        ({"seq_len": 0}, "seq_len"),
        ({"row_bytes": -4}, "row_bytes"),
        ({"position_bytes": -4}, "position_bytes"),
        ({"extra_seconds": float("inf")}, "extra_seconds"),
        ({"staging_budget": -1}, "staging_budget"),
        ({"fidelities": (7,)}, "7 bits"),
        ({"fidelities": (32,)}, "without full weights"),
    ):
        with pytest.raises(ValueError, match=match):
            make_request(layouts, **changes)
    with pytest.raises(ValueError, match="layouts"):
        make_request(layouts[:1])
    with pytest.raises(ValueError, match="layouts"):
        PlanRequest((), make_profile(), 1.0, 0, 128)


def test_a_store_without_full_weights_plans_without_them() -> None:
    assert make_request(make_layouts(2, 3, full_itemsize=0)).fidelities == (2, 3, 4, 5, 6)
    assert make_request(make_layouts(2, 3)).fidelities == (2, 3, 4, 5, 6, 32)
    assert make_request(make_layouts(2, 3), fidelities=(4, 2)).fidelities == (2, 4)

"""Which submodel runs, by all three rules."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.planning import make_plan
from sti_hf.planning.submodel import Submodel
from sti_hf.planning.submodel_choice import choose_submodel, last_resort
from tests.planning.problems import make_layouts, make_profile, make_request

LAYERS, SLICES = 4, 5


def keeps(submodel: Submodel) -> bool:
    return submodel.is_valid(submodel.uniform(submodel.request.lowest))


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


ACCURACY = {(4, 5): 0.8, (3, 5): 0.9, (2, 5): 0.9, (1, 1): 0.5}


def test_measured_accuracy_decides() -> None:
    request = make_request(make_layouts(LAYERS, SLICES), submodel_accuracy=ACCURACY)
    assert size(choose_submodel(request, keeps)) == (3, 5)
    slower = [(3, 5), (4, 5)]
    assert size(choose_submodel(request, lambda s: (s.depth, s.width) not in slower)) == (2, 5)
    # None of those that were measured: the most shards.
    assert size(choose_submodel(request, lambda s: (s.depth, s.width) == (1, 5))) == (1, 5)


def size(submodel: Submodel | None) -> tuple[int, int] | None:
    return submodel and (submodel.depth, submodel.width)


def test_of_equals_the_deeper() -> None:
    request = make_request(make_layouts(4, 4))
    chosen = choose_submodel(request, lambda submodel: submodel.depth * submodel.width <= 8)
    assert size(chosen) == (4, 2)


def test_the_fastest_submodel_has_one_layer() -> None:
    profile = make_profile(widths=(1, 2, SLICES), layer_seconds=((3e-3, 1e-3, 2e-3), (6e-3, 2e-3, 4e-3)))
    request = make_request(make_layouts(LAYERS, SLICES, "tiny"), profile)
    assert size(last_resort(request)) == (1, 2)


def brute_force(accuracy: dict[tuple[int, int], float], max_loss: float, fast: set[tuple[int, int]]) -> Any:
    """By its words: of what was measured within `max_loss` points of the whole and keeps T, the most accurate."""
    whole = accuracy.get((LAYERS, SLICES))
    if whole is None:
        return (LAYERS, SLICES) if (LAYERS, SLICES) in fast else None
    allowed = [
        (value, n * m, n, m)
        for (n, m), value in accuracy.items()
        if (n, m) in fast and round(100 * (whole - value), 6) <= max_loss
    ]
    return max(allowed)[2:] if allowed else None


sizes = st.tuples(st.integers(1, LAYERS), st.integers(1, SLICES))
"""Of submodels."""
scores = st.integers(60, 100).map(lambda points: points / 100)
LAYOUTS = tuple(make_layouts(LAYERS, SLICES, "tiny"))


@given(st.dictionaries(sizes, scores), st.none() | scores, st.sampled_from([0, 1, 2, 10, 100]), st.sets(sizes))
@settings(max_examples=200, deadline=None)
def test_measured_submodels_by_brute_force(accuracy: Any, whole: Any, max_loss: float, fast: Any) -> None:
    accuracy.pop((LAYERS, SLICES), None)
    accuracy |= {(LAYERS, SLICES): whole} if whole is not None else {}
    request = make_request(LAYOUTS, submodels="measured", max_loss=max_loss, submodel_accuracy=accuracy)
    chosen = choose_submodel(request, lambda submodel: (submodel.depth, submodel.width) in fast)
    assert size(chosen) == brute_force(accuracy, max_loss, fast)
    assert size(last_resort(request)) == (LAYERS, SLICES)
    alone = replace(request, submodels="none")
    chosen = choose_submodel(alone, lambda submodel: (submodel.depth, submodel.width) in fast)
    assert size(chosen) == ((LAYERS, SLICES) if (LAYERS, SLICES) in fast else None)


@pytest.mark.parametrize("rule", ["measured", "none"])
def test_a_whole_model_that_misses_the_target_runs_at_the_lowest_fidelity_and_says_so(rule: str) -> None:
    accuracy = {(LAYERS, SLICES): 0.93, (3, 5): 0.9}
    request = make_request(LAYOUTS, target_latency=1e-4, submodels=rule, submodel_accuracy=accuracy)
    plan = make_plan(request)
    assert not plan.feasible
    assert plan.fidelity_counts() == {2: LAYERS * SLICES}
    assert "T cannot be met" in plan.summary() and "the whole model" in plan.summary()
    assert make_plan(replace(request, submodels="any")).submodel == (1, 1)


def test_a_plan_says_whether_its_submodel_was_measured() -> None:
    accuracy = {(LAYERS, SLICES): 0.93, (3, 5): 0.92}
    request = make_request(make_layouts(LAYERS, SLICES), make_profile(widths=(1, SLICES)))
    whole, part = (Submodel(request, depth, SLICES) for depth in (LAYERS, 3))
    between = (whole.latency(whole.uniform(2)) + part.latency(part.uniform(2))) / 2
    hurried = replace(request, target_latency=between, submodel_accuracy=accuracy, submodels="measured")
    plan = make_plan(hurried)
    assert (plan.feasible, plan.submodel, plan.accuracy, plan.submodels) == (True, (3, 5), 0.92, "measured")
    assert "3 x 5 submodel of 4 x 5 (measured: 0.920), 128 tokens" in plan.summary()
    strict = make_plan(replace(hurried, max_loss=0.5))
    assert (strict.feasible, strict.submodel) == (False, (LAYERS, SLICES))
    asked = make_plan(replace(hurried, submodels="any", submodel_accuracy={}))
    assert "(not measured, asked for)" in asked.summary()

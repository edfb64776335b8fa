"""ExecutionPlan: text, JSON, and what replanning changes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sti_hf.planning import ExecutionPlan, make_plan, preload_changes
from sti_hf.shards.layout import kinds_of
from tests.planning.problems import make_importance, make_layouts, make_request

LAYOUTS = make_layouts(4, 4)
FEW = (2, 3, 4)


def plan_for(target_latency: float = 0.03, preload_budget: int = 200_000, **changes: Any) -> ExecutionPlan:
    values: dict[str, Any] = {"importance": make_importance(4, 4), "fidelities": FEW}
    values |= {"target_latency": target_latency, "preload_budget": preload_budget}
    return make_plan(make_request(LAYOUTS, **(values | changes)))


def test_json_round_trip_is_exact() -> None:
    for plan in (plan_for(), plan_for(1e-4), plan_for(strategy="load_exec", fidelity=32)):
        again = ExecutionPlan.from_json(plan.to_json())
        assert again.to_json() == plan.to_json()
        assert (again.bits == plan.bits).all() and again.bits.dtype == plan.bits.dtype
        assert (again.preloaded_pieces == plan.preloaded_pieces).all()
        assert (again.timeline.io_end == plan.timeline.io_end).all()
        assert (again.submodel, again.predicted_latency) == (plan.submodel, plan.predicted_latency)
        assert (again.layers, again.fidelities, again.feasible) == (plan.layers, plan.fidelities, plan.feasible)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"workload": {"tokens": 0, "batch": 1}},
        {"workload": 128},
        {"bits": [[7]]},
        {"bits": [2, 3]},
        {"timeline": {"end": 1.0}},
        {"preloaded_pieces": [[99, 0, 0]]},
        {"layers": None},
    ],
)
def test_not_a_plan(change: dict[str, Any]) -> None:
    content = json.loads(plan_for().to_json())
    with pytest.raises(ValueError, match="not a plan that can be used"):
        ExecutionPlan.from_json(json.dumps(content | change))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null"])
def test_not_json_of_a_plan(text: str) -> None:
    with pytest.raises(ValueError, match="not a plan that can be used"):
        ExecutionPlan.from_json(text)


def test_preloaded_shards_are_those_with_nothing_left_to_read() -> None:
    plan = plan_for(preload_budget=450_000)
    expected = [
        [bits > 0 and plan.preloaded_pieces[layer, list(kinds_of(bits)), i].all() for i, bits in enumerate(row)]
        for layer, row in enumerate(plan.bits.tolist())
    ]
    assert plan.preloaded.tolist() == expected
    assert 0 < plan.preloaded.sum() < 16


def test_the_summary_shows_fidelities_preloaded_shards_and_times() -> None:
    plan = plan_for(0.02, 200_000, fidelities=(2, 3, 32))
    lines = plan.summary().splitlines()
    n, m = plan.submodel
    assert f"{n} x {m} submodel of 4 x 4" in lines[0]
    assert f"predicted {plan.predicted_latency * 1e3:.1f} ms" in lines[1]
    grid = lines[4:8]
    for layer, (line, row) in enumerate(zip(grid, plan.bits.tolist())):
        cells = line.removeprefix(f"layer {layer:>3}  ")
        for i, bits in enumerate(row):
            partly = "+" if plan.preloaded_pieces[layer, :, i].any() else " "
            mark = "*" if plan.preloaded[layer, i] else partly
            assert cells[3 * i : 3 * i + 2] == {0: ".", 32: "F"}.get(bits, str(bits)) + mark
    assert {"*", "+", "."} <= set("".join(grid))
    bars = [line for line in lines[8:] if line.startswith("layer")]
    assert len(bars) == n
    assert all(len(line) == len(bars[0]) for line in bars)
    assert all("#" in line for line in bars)
    assert "-" in bars[-1] and "T cannot be met" not in lines[1]
    assert "T cannot be met" in plan_for(1e-4).summary()


def test_replanning_keeps_reads_and_drops_pieces() -> None:
    old, new = plan_for(0.03, 200_000), plan_for(0.04, 400_000)
    keep, read, drop = preload_changes(old, new)
    assert ((keep | read) == new.preloaded_pieces).all() and ((keep | drop) == old.preloaded_pieces).all()
    assert not (keep & read).any() and not (keep & drop).any()
    assert keep.any() and read.any()
    same, nothing, none = preload_changes(old, old)
    assert (same == old.preloaded_pieces).all() and not np.any(nothing | none)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from sti_hf import STIConfig
from sti_hf.errors import InfeasibleLatencyError
from sti_hf.shards.store import ShardStore
from tests.models import tiny_inputs, tiny_model
from tests.runtime.interruptions import interrupted_at, lines_of
from tests.runtime.sessions import logits_of, planned, store_of

STOCK = tiny_model(BertForSequenceClassification, hidden_size=64, intermediate_size=256)
INPUTS = {tokens: tiny_inputs(STOCK, batch=1, tokens=tokens) for tokens in (9, 20, 40)}
CONFIG = STIConfig(target_latency=0.05, preload_budget=40_000, seq_len=16, submodels="any")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(STOCK, tmp_path_factory.mktemp("interrupted") / "store")


def answers(model: Any) -> dict[int, torch.Tensor]:
    return {tokens: logits_of(model(**inputs)) for tokens, inputs in INPUTS.items()}


def check_every_line(
    store: ShardStore, call: Callable[[Any], Any], allowed: list[dict[int, torch.Tensor]], most: int = 10_000
) -> None:
    """Interrupts `call` at each of its lines; afterwards every length answers as one of `allowed` does."""

    def fresh() -> Any:
        model = planned(store, CONFIG)
        model(**INPUTS[9])
        return model

    model = fresh()
    lines = lines_of(lambda: call(model))
    model.sti.close()
    assert len(lines) > 20
    model, hits = fresh(), 0
    for line in lines[:most]:
        hits += interrupted_at(line, lambda: call(model))
        found = answers(model)
        assert any(all(torch.equal(found[tokens], right[tokens]) for tokens in INPUTS) for right in allowed), (
            f"another answer after an exception at {line}"
        )
        model.sti.replan(target_latency=CONFIG.target_latency)
        model(**INPUTS[9])
    model.sti.close()
    assert hits > len(lines) / 4


def right_answers(store: ShardStore, **changes: Any) -> dict[int, torch.Tensor]:
    model = planned(store, CONFIG.replaced(**changes))
    right = answers(model)
    model.sti.close()
    return right


def test_a_change_of_plan_is_whole_or_nothing(store: ShardStore) -> None:
    check_every_line(store, lambda model: model(**INPUTS[40]), [right_answers(store)])


def test_a_forward_that_is_interrupted_leaves_nothing_behind(store: ShardStore) -> None:
    check_every_line(store, lambda model: model(**INPUTS[9]), [right_answers(store)])


def test_replanning_is_whole_or_nothing(store: ShardStore) -> None:
    allowed = [right_answers(store), right_answers(store, target_latency=0.07)]
    assert not torch.equal(allowed[0][9], allowed[1][9])
    check_every_line(store, lambda model: model.sti.replan(target_latency=0.07), allowed)


def test_a_refused_replan_leaves_everything_as_it_was(store: ShardStore) -> None:
    strict = CONFIG.replaced(strict=True)
    model = planned(store, strict)
    before, plan = answers(model), model.sti.plan
    for _ in range(2):
        with pytest.raises(InfeasibleLatencyError):
            model.sti.replan(target_latency=1e-6)
        assert model.sti.config.target_latency == strict.target_latency
        assert model.sti.plan is plan
        after = answers(model)
        assert all(torch.equal(after[tokens], before[tokens]) for tokens in INPUTS)
        plan = model.sti.plan
    model.sti.close()


def test_a_replan_that_makes_no_sense_leaves_everything_as_it_was(store: ShardStore, tmp_path: Path) -> None:
    model = planned(store, CONFIG)
    before = answers(model)
    with pytest.raises(ValueError, match="target_latency"):
        model.sti.replan(target_latency="soon")
    after = answers(model)
    assert all(torch.equal(after[tokens], before[tokens]) for tokens in INPUTS)
    model.sti.close()

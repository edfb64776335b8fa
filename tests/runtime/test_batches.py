"""The same text, the same answer: what stands beside a text in a batch does not change its plan."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from sti_hf.planning import Workload
from sti_hf.shards.store import ShardStore
from tests.models import tiny_inputs, tiny_model
from tests.runtime.sessions import plan_of, planned_by, store_of

STOCK = tiny_model(BertForSequenceClassification)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(STOCK, tmp_path_factory.mktemp("batches") / "store")


def loaded(store: ShardStore, asked: list[Workload], **fields: Any) -> Any:
    """A model whose plans of more than 16 tokens run one layer less; `asked` are the workloads that were planned."""

    def plan(config: Any, workload: Workload) -> Any:
        asked.append(workload)
        bits = np.full((store.grid.layers, store.grid.slices), 32)
        bits[2 if workload.tokens > 16 else 3 :] = 0
        return dataclasses.replace(plan_of(store, bits), workload=workload)

    return planned_by(store, plan, **fields)


def test_a_batch_runs_the_plan_of_its_length(store: ShardStore) -> None:
    asked: list[Workload] = []
    model = loaded(store, asked, seq_len=16)
    inputs = tiny_inputs(STOCK, batch=16, tokens=11, padded=False)
    alone = torch.cat(
        [model(**{name: value[row : row + 1] for name, value in inputs.items()}).logits for row in range(16)]
    )
    for size in (2, 8, 16):
        batch = {name: value[:size] for name, value in inputs.items()}
        assert torch.allclose(model(**batch).logits, alone[:size], atol=1e-6)
        assert model.sti.last_run.tokens == size * 11
    assert asked == [Workload(16)]
    model.sti.close()


def test_who_wants_the_latency_for_a_batch_says_so(store: ShardStore) -> None:
    asked: list[Workload] = []
    model = loaded(store, asked, seq_len=9, batch_size=4)
    model(**tiny_inputs(STOCK, batch=4, tokens=9))
    assert asked == [Workload(16, 4)]
    model.sti.close()


def test_a_smaller_submodel_than_the_first_is_announced_once(store: ShardStore) -> None:
    model = loaded(store, [], seq_len=16)
    with pytest.warns(UserWarning, match="32 tokens run a submodel of 2 x 4, smaller than the 3 x 4 of 16 tokens"):
        model(**tiny_inputs(STOCK, tokens=20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**tiny_inputs(STOCK, tokens=9))
        model(**tiny_inputs(STOCK, tokens=40))
    model.sti.close()


def test_a_fixed_plan_serves_all_lengths(store: ShardStore) -> None:
    asked: list[Workload] = []
    model = loaded(store, asked, seq_len=16, fixed_plan=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tokens in (9, 20, 40, 70):
            model(**tiny_inputs(STOCK, tokens=tokens))
            assert model.sti.plan.submodel == (3, 4)
    assert asked == [Workload(16)]
    model.sti.close()

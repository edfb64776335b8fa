"""A store that is moved, reordered or replaced while a model runs from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from sti_hf import ShardStore, shard_checkpoint
from sti_hf.errors import StoreReplacedError
from sti_hf.model import architecture_of
from sti_hf.shards.reorder import reorder_store
from tests.integrations.checkpoints import checkpoint
from tests.models import tiny_inputs, tiny_model

INPUTS = tiny_inputs(tiny_model(BertForSequenceClassification))
CONFIG = {"target_latency": 0.3, "preload_budget": "20KB"}


def load(store: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(store, sti_config=CONFIG)


def answers(model: Any) -> list[torch.Tensor]:
    """At two latencies: the second is planned and read anew."""
    found = []
    for latency in (0.3, 0.02):
        model.sti.replan(target_latency=latency)
        found.append(model(**INPUTS).logits)
    return found


@pytest.fixture
def store(classifier_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(classifier_store, tmp_path / "store"))


def test_a_relative_path_survives_another_directory(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.parent)
    model = load(Path("store"))
    expected = answers(model)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert all(map(torch.equal, answers(model), expected))
    model.sti.close()


def test_a_store_that_is_moved_serves_on(store: Path) -> None:
    model = load(store)
    expected = answers(model)
    store.rename(store.parent / "moved")
    assert all(map(torch.equal, answers(model), expected))
    model.sti.close()
    again = load(store.parent / "moved")
    assert all(map(torch.equal, answers(again), expected))
    again.sti.close()


def test_a_store_that_is_reordered_serves_on_as_it_was(store: Path) -> None:
    model = load(store)
    expected = answers(model)
    opened = ShardStore.open(store)
    random = np.random.default_rng(0)
    order = [random.permutation(opened.grid.slices).tolist() for _ in range(opened.grid.layers)]
    reorder_store(opened, architecture_of(opened.stack.model_type), order)
    assert all(map(torch.equal, answers(model), expected))
    model.sti.close()
    again = load(store)
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(answers(again), expected))
    again.sti.close()


def test_a_store_whose_files_are_overwritten_says_so(store: Path, tmp_path: Path) -> None:
    model = load(store)
    other = shard_checkpoint(
        checkpoint(BertForSequenceClassification, tmp_path / "other", seed=5),
        tmp_path / "other-store",
        quantizer="lloyd",
    )
    for file in other.path.iterdir():
        (store / file.name).write_bytes(file.read_bytes())  # into the files that are open
    for _ in range(2):
        with pytest.raises(StoreReplacedError, match="load again"):
            answers(model)
    model.sti.close()
    again, right = load(store), load(other.path)
    assert all(map(torch.equal, answers(again), answers(right)))
    for one in (again, right):
        one.sti.close()

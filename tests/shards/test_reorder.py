"""A store with its slices in another order."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    MPNetForSequenceClassification,
    Olmo2Model,
    PreTrainedModel,
    RobertaModel,
)

from sti_hf.errors import ConfigurationError, StoreError, UnsupportedModelError
from sti_hf.integrations.full_model import full_model
from sti_hf.model import get_architecture
from sti_hf.shards import whole
from sti_hf.shards.layout import KINDS
from sti_hf.shards.reading import read_piece
from sti_hf.shards.reorder import reorder_store
from sti_hf.shards.store import ShardStore
from sti_hf.shards.verification import verify_store
from tests.models import HEADS, LAYERS, tiny_inputs, tiny_model
from tests.runtime.sessions import logits_of, plan_of, random_bits, running, store_of

CLASSES = [
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    MPNetForSequenceClassification,
    RobertaModel,
]


def permutations(seed: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.permutation(HEADS).tolist() for _ in range(LAYERS)]


def reordered(store: ShardStore, model: PreTrainedModel, order: list[list[int]]) -> ShardStore:
    return reorder_store(store, get_architecture(model.config), order)


@pytest.mark.parametrize("model_class", CLASSES)
def test_the_same_model(tmp_path: Path, model_class: type[PreTrainedModel]) -> None:
    model = tiny_model(model_class)
    store = store_of(model, tmp_path / "store", slice_order=permutations(1))
    bits, inputs = random_bits(store, 0), tiny_inputs(model)
    before = running(store, plan_of(store, bits))
    with torch.no_grad():
        expected = logits_of(before(**inputs))
    before.sti.close()
    order = permutations(2)
    moved = reordered(store, model, order)
    assert verify_store(moved) == []
    assert moved.stack.slice_order == tuple(
        tuple(store.stack.slice_order[layer][k] for k in order[layer]) for layer in range(LAYERS)
    )
    for name, tensor in full_model(moved).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    after = running(moved, plan_of(moved, np.take_along_axis(bits, np.array(order), axis=1)))
    with torch.no_grad():
        torch.testing.assert_close(logits_of(after(**inputs)), expected, rtol=1e-5, atol=1e-5)
    after.sti.close()


def test_every_piece_has_moved_as_it_was(tmp_path: Path) -> None:
    model = tiny_model(BertForSequenceClassification)
    store = store_of(model, tmp_path / "store", "gobo")
    pieces = {where: read_piece(store, *where) for where in np.ndindex(LAYERS, KINDS, HEADS)}
    order = permutations(3)
    moved = reordered(store, model, order)
    for layer, kind, k in np.ndindex(LAYERS, KINDS, HEADS):
        assert np.array_equal(read_piece(moved, layer, kind, k), pieces[layer, kind, order[layer][k]])


def test_a_store_of_the_same_order_is_the_same(tmp_path: Path) -> None:
    model = tiny_model(BertForSequenceClassification)
    store = store_of(model, tmp_path / "moved")
    straight = store_of(model, tmp_path / "straight", slice_order=permutations(4))
    moved = reordered(store, model, permutations(4))
    for name in sorted(os.listdir(straight.path)):
        if name != "sti.json":
            assert (moved.path / name).read_bytes() == (straight.path / name).read_bytes(), name
    assert moved.index.to_json() == straight.index.to_json()


def test_everything_else_stays(tmp_path: Path) -> None:
    model = tiny_model(BertForSequenceClassification)
    store = store_of(model, tmp_path / "store", full=False)
    for name in ("tokenizer.json", "importance-sst2.safetensors", "README.md"):
        (store.path / name).write_text(name)
    config = json.loads((store.path / "config.json").read_text())
    config["quantization_config"]["target_latency"] = "77ms"
    (store.path / "config.json").write_text(json.dumps(config))
    before = set(os.listdir(store.path))
    told: list[int] = []
    moved = reorder_store(store, get_architecture(model.config), permutations(5), told.append)
    assert told == [1, 2, 3]
    assert set(os.listdir(store.path)) == before
    assert os.listdir(tmp_path) == ["store"]
    assert json.loads((store.path / "config.json").read_text()) == config
    assert (store.path / "README.md").read_text() == "README.md"
    assert moved.path.stat().st_mode & 0o777 == 0o755
    assert moved.fidelities == (2, 3, 4, 5, 6)


def test_slices_that_are_not_droppable_stay_where_they_are(tmp_path: Path) -> None:
    model = tiny_model(Olmo2Model)
    store = store_of(model, tmp_path / "store")
    content = {path: path.read_bytes() for path in store.path.iterdir()}
    order = [list(reversed(range(store.grid.slices)))] * LAYERS
    with pytest.raises(ConfigurationError, match="have one order only"):
        reordered(store, model, order)
    assert {path: path.read_bytes() for path in store.path.iterdir()} == content
    with pytest.raises(UnsupportedModelError, match="olmo2 model have one order only"):
        store_of(model, tmp_path / "other", slice_order=order)
    assert not (tmp_path / "other").exists()


def test_it_fails_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(BertForSequenceClassification)
    store = store_of(model, tmp_path / "store")
    content = {name: (store.path / name).read_bytes() for name in os.listdir(store.path)}

    def unchanged() -> bool:
        now = {name: (store.path / name).read_bytes() for name in os.listdir(store.path)}
        return now == content and os.listdir(tmp_path) == ["store"]

    for order in (permutations(0)[:2], [[0, 1, 2, 2]] * LAYERS, [[0, 1, 2]] * LAYERS):
        with pytest.raises(ValueError, match="slices 0 to 3 once for each of the 3 layers"):
            reordered(store, model, order)
    assert unchanged()
    replace = os.replace

    def second_fails(source: Path, destination: Path) -> None:
        if Path(destination) == store.path and not Path(source).name.endswith(".old"):
            raise OSError("no room")
        replace(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(whole, "_renameat2", None)  # a file system that cannot swap two folders
        patch.setattr(whole.os, "replace", second_fails)
        with pytest.raises(OSError, match="no room"):
            reordered(store, model, permutations(0))
    assert unchanged()
    damaged = bytearray(content["shards-00001-of-00001.safetensors"])
    damaged[int(store.layouts[1].piece_offset[2, 1])] ^= 1
    (store.path / "shards-00001-of-00001.safetensors").write_bytes(damaged)
    with pytest.raises(StoreError, match=r"plane 2 of shard \(1, 1\)"):
        reordered(store, model, permutations(0))
    assert os.listdir(tmp_path) == ["store"]

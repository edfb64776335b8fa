"""Importance profiles in a store."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import BertForSequenceClassification

from sti_hf.planning.exhaustive import ExhaustiveImportance
from sti_hf.planning.importance_file import (
    METADATA,
    best_first,
    profile_names,
    read_profile,
    store_identity,
    submodel_accuracy,
    write_profile,
)
from sti_hf.shards.store import ShardStore
from tests.models import HEADS, LAYERS, tiny_model
from tests.runtime.sessions import store_of

ORDER = [[2, 0, 3, 1], [0, 1, 2, 3], [3, 2, 1, 0]]


def profile(seed: int = 0) -> ExhaustiveImportance:
    random = np.random.default_rng(seed)
    return ExhaustiveImportance(random.random((LAYERS, HEADS)), random.random((LAYERS, HEADS)), 2, 0.5, 0.7)


@pytest.fixture
def store(tmp_path: Path) -> ShardStore:
    return store_of(tiny_model(BertForSequenceClassification), tmp_path / "store", "gobo", slice_order=ORDER)


def test_a_round_trip(store: ShardStore) -> None:
    assert profile_names(store) == []
    facts = {"task": "sst2", "sentences": 436, "nested": [[1, 2, 0.5]]}
    path = write_profile(store, "sst2", profile(), facts)
    assert path == store.path / "importance-sst2.safetensors"
    write_profile(store, "a.b_C-1", profile(1), {})
    assert profile_names(store) == ["a.b_C-1", "sst2"]
    found, found_facts = read_profile(store, "sst2")
    assert isinstance(found, ExhaustiveImportance)
    assert np.array_equal(found.table, profile().table)
    assert found_facts == facts
    assert np.array_equal(best_first(store, "sst2"), profile().order())
    write_profile(store, "sst2", profile(2), {})
    found, found_facts = read_profile(store, "sst2")
    assert np.array_equal(found.table, profile(2).table)
    assert found_facts == {}
    assert not list(store.path.glob(".*")), "nothing half-written remains"


def test_it_follows_the_slices_into_another_order(store: ShardStore, tmp_path: Path) -> None:
    path = write_profile(store, "sst2", profile(), {})
    plain = store_of(tiny_model(BertForSequenceClassification), tmp_path / "plain", "gobo")
    assert store_identity(plain) == store_identity(store)
    shutil.copyfile(path, plain.path / path.name)
    found, _ = read_profile(plain, "sst2")
    assert isinstance(found, ExhaustiveImportance)
    for layer, order in enumerate(ORDER):
        for k, index in enumerate(order):
            assert found.scores[layer, index] == profile().scores[layer, k]
    assert np.array_equal(load_file(path)["scores"], found.scores), "kept in the checkpoint's order"


def test_another_store_refuses_it(store: ShardStore, tmp_path: Path) -> None:
    path = write_profile(store, "sst2", profile(), {})
    model = tiny_model(BertForSequenceClassification)
    others = {
        "weights": store_of(tiny_model(BertForSequenceClassification, seed=1), tmp_path / "weights", "gobo"),
        "quantizer": store_of(model, tmp_path / "quantizer", "lloyd"),
    }
    for other in others.values():
        shutil.copyfile(path, other.path / path.name)
        with pytest.raises(ValueError, match=r"importance-sst2.safetensors was measured on another store"):
            read_profile(other, "sst2")
    small = store_of(model, tmp_path / "small", "gobo", full=False)
    assert store_identity(small) == store_identity(store), "the same codes, only the full weights are left out"


def test_codes_tell_stores_apart(store: ShardStore, tmp_path: Path) -> None:
    """As of one checkpoint, calibrated with other text."""
    other = shutil.copytree(store.path, tmp_path / "other")
    checksums = store.stack.checksums.copy()
    checksums[1, 3, 2] ^= 1
    changed = ShardStore(other, replace(store.index, stacks={"": replace(store.stack, checksums=checksums)}))
    assert store_identity(changed) != store_identity(store)


def test_names(store: ShardStore) -> None:
    for name in ("", "../sst2", "a b", "default", "a/b", "ä"):
        with pytest.raises(ValueError, match="cannot be an importance profile's name"):
            write_profile(store, name, profile(), {})
        with pytest.raises(ValueError, match="cannot be an importance profile's name"):
            read_profile(store, name)
    with pytest.raises(ValueError, match=r"no importance profile 'sst2'; it has none; make one"):
        read_profile(store, "sst2")
    write_profile(store, "mrpc", profile(), {})
    write_profile(store, "rte", profile(), {})
    with pytest.raises(ValueError, match=r"no importance profile 'sst2'; it has mrpc, rte\."):
        read_profile(store, "sst2")


def test_damage(store: ShardStore) -> None:
    path = write_profile(store, "sst2", profile(), {})
    content = path.read_bytes()
    for damaged in (b"", content[:100], content[:-1], content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            read_profile(store, "sst2")
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][METADATA])
    for change in ({"format_version": 2}, {"method": "magic"}):
        save_file(profile().arrays(), path, {METADATA: json.dumps({**metadata, **change})})
        with pytest.raises(ValueError, match="of another version of sti_hf"):
            read_profile(store, "sst2")


def test_submodel_accuracy_holds_for_one_order(store: ShardStore) -> None:
    measured = [
        {"slice_order": torch.arange(HEADS).repeat(LAYERS, 1).tolist(), "bits": 6, "accuracy": [[3, 4, 0.1]]},
        {"slice_order": ORDER, "bits": 6, "accuracy": [[1, 2, 0.5], [3, 4, 0.9]]},
    ]
    write_profile(store, "sst2", profile(), {"submodels": measured})
    _, facts = read_profile(store, "sst2")
    assert submodel_accuracy(store, facts) == {(1, 2): 0.5, (3, 4): 0.9}
    assert submodel_accuracy(store, {"submodels": measured[:1]}) == {}
    assert submodel_accuracy(store, {}) == {}

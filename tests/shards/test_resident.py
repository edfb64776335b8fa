"""The resident weights of a store, held against safetensors' own reader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from sti_hf import ShardStore, StoreError, native
from sti_hf.shards import resident as resident_module
from sti_hf.shards.quantizers import get_quantizer
from sti_hf.shards.resident import read_resident
from sti_hf.shards.sharding import write_store
from sti_hf.shards.store import RESIDENT_FILE
from tests.models import tiny_model

TENSORS = {
    "floats": torch.randn(3, 5),
    "halves": torch.randn(7).to(torch.bfloat16),
    "scalar": torch.tensor(2.5),
    "none": torch.empty(0, 4),
    "flags": torch.tensor([True, False, True]),
    "ids": torch.arange(9),
}


@pytest.fixture
def store(tmp_path: Path) -> ShardStore:
    model = tiny_model(BertForSequenceClassification)
    return write_store(model, tmp_path / "store", quantizer=get_quantizer("gobo"), quantizer_name="gobo")


def put(store: ShardStore, tensors: dict[str, torch.Tensor]) -> None:
    """Replaces the resident weights of a store, as its index (in memory) sees it too."""
    file = store.path / RESIDENT_FILE
    save_file(tensors, file)
    store.index.files[RESIDENT_FILE] = file.stat().st_size
    object.__setattr__(store.index, "resident_checksum", native.crc32c(file.read_bytes()))


def check(store: ShardStore) -> None:
    found, expected = read_resident(store), load_file(store.path / RESIDENT_FILE)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)


def test_of_a_model(store: ShardStore) -> None:
    check(store)


def test_every_dtype_and_shape(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, TENSORS)
    check(store)
    monkeypatch.setattr(resident_module, "READ_BYTES", 7)
    check(store)


@pytest.mark.parametrize("damage", ["changed", "longer", "shorter"])
def test_damage(store: ShardStore, damage: str) -> None:
    file = store.path / RESIDENT_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes({"changed": content, "longer": content + b"x", "shorter": content[:-9]}[damage])
    with pytest.raises(StoreError, match=r"resident\.safetensors is damaged"):
        read_resident(store)

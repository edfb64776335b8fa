"""The checksums of large tables' rows are read when they are needed, and are those of small ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertModel

from sti_hf import native
from sti_hf.runtime.reads import row_checksums
from sti_hf.runtime.reads.row_checksums import RowChecksums
from sti_hf.runtime.reads.tables import TableReader
from sti_hf.shards.store import TABLES_FILE, ShardStore
from tests.integrations.checkpoints import STOCK
from tests.models import tiny_inputs, tiny_model
from tests.runtime.sessions import store_of

ROWS = 3000


@pytest.fixture(scope="module")
def stock() -> Any:
    return tiny_model(BertModel, vocab_size=ROWS)


@pytest.fixture(scope="module")
def store(stock: Any, tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(stock, tmp_path_factory.mktemp("large") / "store")


def checksums_of(store: ShardStore, most_in_memory: int) -> RowChecksums:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_checksums, "MOST_IN_MEMORY", most_in_memory)
        return RowChecksums(store, "word_embeddings", native.RowReader(str(store.path / TABLES_FILE)))


@given(st.sets(st.integers(0, ROWS - 1), max_size=40))
def test_they_are_those_of_the_store(store: ShardStore, rows: set[int]) -> None:
    chosen = np.array(sorted(rows), dtype=np.int64)
    expected = store.row_checksums("word_embeddings")[chosen]
    for most in (4 * ROWS, 4 * ROWS - 1):
        assert np.array_equal(checksums_of(store, most).of(chosen), expected)


def test_large_ones_take_no_memory(store: ShardStore) -> None:
    assert checksums_of(store, 4 * ROWS).resident_bytes == 4 * ROWS
    assert checksums_of(store, 4 * ROWS - 1).resident_bytes == 0


def test_a_model_with_a_large_table(stock: Any, store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_checksums, "MOST_IN_MEMORY", 0)
    inputs = tiny_inputs(stock)
    reader = TableReader(store, "word_embeddings")
    with pytest.MonkeyPatch.context() as small:
        small.setattr(row_checksums, "TOGETHER", 64)
        assert torch.equal(TableReader(store, "position_embeddings").read(np.arange(70)), positions_of(stock))
        model: Any = BertModel.from_pretrained(store.path, sti_config=STOCK)
        with torch.no_grad():
            assert torch.allclose(model(**inputs)[0], stock(**inputs)[0], atol=1e-5)
        model.sti.close()
    every = torch.cat([block for _, block in reader.blocks()])
    assert torch.equal(every, stock.embeddings.word_embeddings.weight)


def positions_of(model: Any) -> torch.Tensor:
    weight: torch.Tensor = model.embeddings.position_embeddings.weight.detach()
    return weight


def test_damage_is_found(stock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(stock, tmp_path / "store")
    monkeypatch.setattr(row_checksums, "MOST_IN_MEMORY", 0)
    table = store.stack.tables["word_embeddings"]
    content = bytearray((store.path / TABLES_FILE).read_bytes())
    content[table.offset + 2000 * table.row_bytes] ^= 1
    content[table.checksums_offset + 4 * 30] ^= 1
    (store.path / TABLES_FILE).write_bytes(content)
    reader = TableReader(store, "word_embeddings")
    reader.read(np.array([0, 29, 31, 1999, 2001, 2999]))
    for row in (30, 2000):
        with pytest.raises(native.StreamError):
            reader.read(np.array([row]))

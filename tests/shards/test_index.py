"""The index of a store: every format that there was is read, and nothing that its files have no room for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, CLIPModel, Olmo2Model

from sti_hf import native
from sti_hf.errors import StoreError, UnsupportedModelError
from sti_hf.shards.index import INDEX_FILE, StackIndex, StoreIndex
from sti_hf.shards.reading import read_piece
from sti_hf.shards.resident import read_resident, read_stack_resident
from sti_hf.shards.store import ShardStore
from sti_hf.shards.verification import verify_store
from tests.models import tiny_model
from tests.runtime.sessions import store_of

OF_STACKS = {field.name for field in fields(StackIndex)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(tiny_model(BertForSequenceClassification), tmp_path_factory.mktemp("one") / "store")


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(tiny_model(CLIPModel), tmp_path_factory.mktemp("two") / "store")


def rewritten(store: ShardStore, folder: Path, version: int, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a store whose index was changed, and has a checksum that fits."""
    copy = folder / "copy"
    shutil.copytree(store.path, copy)
    outer = json.loads((copy / INDEX_FILE).read_text())
    content = json.loads(outer["index"])
    change(content)
    body = json.dumps(content)
    outer = {"format_version": version, "checksum": native.crc32c(body.encode()), "index": body}
    (copy / INDEX_FILE).write_text(json.dumps(outer))
    return copy


def into_format_1(content: dict[str, Any]) -> None:
    """As the format was when a store had one stack: its fields stood beside the others."""
    stack = content.pop("stacks")[""]
    assert set(stack) == OF_STACKS
    content.update(stack)
    del content["depth_rule"]


def test_format_1_is_read(store: ShardStore, tmp_path: Path) -> None:
    old = ShardStore.open(rewritten(store, tmp_path, 1, into_format_1))
    assert old.index.to_json() == store.index.to_json()
    assert verify_store(old) == []


def test_slices_of_stores_from_before_that_was_said_are_droppable(store: ShardStore, tmp_path: Path) -> None:
    old = ShardStore.open(
        rewritten(store, tmp_path, 2, lambda content: content["stacks"][""]["grid"].pop("droppable"))
    )
    assert old.index.to_json() == store.index.to_json()
    assert old.grid.droppable


def test_slices_that_are_not_droppable_have_one_order(tmp_path: Path) -> None:
    store = store_of(tiny_model(Olmo2Model), tmp_path / "store")
    assert ShardStore.open(store.path).grid == store.grid
    assert not store.grid.droppable

    def reversed_order(content: dict[str, Any]) -> None:
        content["stacks"][""]["slice_order"][1].reverse()

    with pytest.raises(StoreError, match="describes no store"):
        ShardStore.open(rewritten(store, tmp_path, 2, reversed_order))


def test_an_index_is_what_it_was_written_as(stacked: ShardStore) -> None:
    again = StoreIndex.from_json(stacked.index.to_json())
    assert list(again.stacks) == ["text_model", "vision_model"]
    for name, stack in again.stacks.items():
        assert np.array_equal(stack.checksums, stacked.index.stacks[name].checksums)
        assert stack.tables == stacked.index.stacks[name].tables
    assert again.to_json() == stacked.index.to_json()


def test_a_store_of_several_stacks_is_used_by_stack(stacked: ShardStore) -> None:
    with pytest.raises(UnsupportedModelError, match="has the stacks text_model and vision_model, and this is for"):
        stacked.grid  # noqa: B018 - the property is what is tested
    for name, stack in stacked.stacks.items():
        assert stack.stack_name == name and stack.grid == stacked.index.stacks[name].grid
        assert len(stack.layouts) == stack.grid.layers
    texts, images = stacked.stacks.values()
    assert texts.row_bytes > 0 and images.row_bytes == 0
    assert verify_store(stacked) == []


def test_resident_weights_have_the_names_of_the_model_and_of_the_stack(stacked: ShardStore) -> None:
    whole = read_resident(stacked)
    for name, stack in stacked.stacks.items():
        weights = read_stack_resident(stack)
        own = [key for key in whole if key.startswith(f"{name}.")]
        assert own and all(torch.equal(weights[key.removeprefix(f"{name}.")], whole[key]) for key in own)


def test_damage_says_of_which_stack_it_is(stacked: ShardStore, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(stacked.path, copy)
    images = stacked.stacks["vision_model"]
    file = copy / images.stack.layer_files[1]
    content = bytearray(file.read_bytes())
    content[int(images.layouts[1].piece_offset[3, 2])] ^= 1
    file.write_bytes(content)
    damaged = ShardStore.open(copy)
    assert [piece.what for piece in verify_store(damaged)] == ["plane 3 of shard (1, 2) of vision_model"]
    read_piece(damaged.stacks["text_model"], 1, 3, 2)
    with pytest.raises(StoreError, match="is damaged"):
        read_piece(damaged.stacks["vision_model"], 1, 3, 2)


def beyond(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(content: dict[str, Any]) -> None:
        content["stacks"][""][name] = value(content["stacks"][""][name])

    return change


def table_beyond(name: str, value: int) -> Callable[[dict[str, Any]], Any]:
    def change(content: dict[str, Any]) -> None:
        content["stacks"][""]["tables"]["word_embeddings"][name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        beyond("layer_offsets", lambda offsets: [*offsets[:-1], offsets[-1] + (1 << 40)]),
        beyond("layer_offsets", lambda offsets: [*offsets[:-1], -4096]),
        beyond("layer_offsets", lambda offsets: [*offsets[:-1], offsets[-1] + 1]),
        beyond("layer_offsets", lambda offsets: offsets[:-1]),
        beyond("layer_files", lambda files: [*files[:-1], "/etc/passwd"]),
        beyond("header_bytes", lambda sizes: [[1 << 40, *sizes[0][1:]], *sizes[1:]]),
        beyond("header_bytes", lambda sizes: [sizes[0][1:], *sizes[1:]]),
        beyond("slice_order", lambda order: order[:-1]),
        beyond("checksums", lambda checksums: checksums[:-1]),
        beyond("checksums", lambda checksums: [checksums[0][8:], *checksums[1:]]),
        beyond("grid", lambda grid: {**grid, "row_length": grid["row_length"] << 20}),
        beyond("grid", lambda grid: {**grid, "layers": 1 << 40}),
        beyond("grid", lambda grid: {"layers": 3}),
        table_beyond("rows", 1 << 40),
        table_beyond("offset", -8),
        table_beyond("columns", 1 << 40),
        table_beyond("dtype", "complex128"),  # type: ignore[arg-type]
        lambda content: content.pop("stacks"),
        lambda content: content.update(stacks={}),
        lambda content: content.update(stacks=[]),
        lambda content: content.update(files=None),
    ],
)
def test_places_that_the_files_do_not_have(
    store: ShardStore, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    path = rewritten(store, tmp_path, 2, change)
    with pytest.raises(StoreError):
        ShardStore.open(path)

"""Only pieces that were read and checked are ever taken for held, whatever went wrong in reading ahead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from sti_hf.native import StreamError
from sti_hf.shards.store import ShardStore
from tests.models import tiny_inputs, tiny_model
from tests.runtime.sessions import damaged, logits_of, plan_of, planned_by, store_of

STOCK = tiny_model(BertForSequenceClassification, hidden_size=64, intermediate_size=256)
SHORT, LONG = tiny_inputs(STOCK, tokens=9), tiny_inputs(STOCK, tokens=40)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(STOCK, tmp_path_factory.mktemp("held") / "store")


def with_two_plans(store: ShardStore, seq_len: int, bits: tuple[int, int] = (6, 6), preload: float = 1.0) -> Any:
    """A model with a plan for short texts and one for longer ones, both of which preload."""
    shape = (store.grid.layers, store.grid.slices)
    short, long = (plan_of(store, np.full(shape, each), preload) for each in bits)
    return planned_by(store, lambda config, workload: long if workload.tokens > 16 else short, seq_len=seq_len)


@pytest.mark.parametrize("seq_len", [16, 128])
@pytest.mark.parametrize("layer", [0, 2])
def test_damaged_pieces_are_never_kept(store: ShardStore, tmp_path: Path, seq_len: int, layer: int) -> None:
    model = with_two_plans(damaged(store, tmp_path / "damaged", layer, kind=1), seq_len)
    for inputs in (SHORT, SHORT, LONG, SHORT, LONG, LONG):
        with pytest.raises(StreamError, match="checksum"):
            model(**inputs)
    model.sti.close()


def test_damage_that_a_plan_does_not_read_is_no_error(store: ShardStore, tmp_path: Path) -> None:
    broken = damaged(store, tmp_path / "damaged", 1, kind=6)
    model, intact = with_two_plans(broken, 128, bits=(4, 6)), with_two_plans(store, 16, bits=(4, 6))
    expected = logits_of(intact(**SHORT))
    for _ in range(2):
        assert torch.equal(logits_of(model(**SHORT)), expected)
        with pytest.raises(StreamError, match="checksum"):
            model(**LONG)
    for one in (model, intact):
        one.sti.close()


def test_a_store_that_is_mended_answers_again(store: ShardStore, tmp_path: Path) -> None:
    broken = damaged(store, tmp_path / "damaged", 1, kind=2)
    model, intact = with_two_plans(broken, 128), with_two_plans(store, 128)
    expected = logits_of(intact(**SHORT))
    with pytest.raises(StreamError, match="checksum"):
        model(**SHORT)
    name = store.stack.layer_files[1]
    with (broken.path / name).open("r+b") as file:  # the same file: it is open
        file.write((store.path / name).read_bytes())
    for _ in range(2):
        assert torch.equal(logits_of(model(**SHORT)), expected)
    for one in (model, intact):
        one.sti.close()


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_what_a_cancelled_run_had_not_checked_is_read_again(store: ShardStore, steps: int) -> None:
    """Reading is ended at any moment: between that and the next forward, nothing is taken for granted."""
    model, intact = with_two_plans(store, 16), with_two_plans(store, 16)
    expected = logits_of(intact(**SHORT))
    streamer = model.sti._engines.layers.streamer
    for step in range(steps):
        streamer.wait(step)
    streamer.stop()
    for held, placed in zip(streamer.prepared.held, streamer.prepared.placement.layers):
        assert not (held & ~placed.preloaded).any()
        if held.any():
            buffer = streamer.prepared.compressed[0]
            layout = store.layouts[placed.layer]
            offsets, sizes = layout.piece_offset[held], layout.piece_bytes[held]
            raw = np.fromfile(store.layer_path(placed.layer), np.uint8)
            for place, offset, size in zip(placed.preload_image.place(offsets), offsets, sizes):
                assert (buffer[place : place + size] == raw[offset : offset + size]).all()
    assert torch.equal(logits_of(model(**SHORT)), expected)
    for one in (model, intact):
        one.sti.close()


def test_a_random_history_of_damage_and_lengths_is_right_or_an_error(store: ShardStore, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    expected = {}
    intact = with_two_plans(store, 16, bits=(3, 5), preload=0.6)
    for name, inputs in (("short", SHORT), ("long", LONG)):
        expected[name] = logits_of(intact(**inputs))
    broken = damaged(store, tmp_path / "damaged", 0, kind=1)
    name, wrong = store.stack.layer_files[0], (broken.path / store.stack.layer_files[0]).read_bytes()
    right = (store.path / name).read_bytes()
    model = with_two_plans(broken, 16, bits=(3, 5), preload=0.6)
    errors = 0
    for _ in range(60):
        with (broken.path / name).open("r+b") as file:
            file.write(right if random.random() < 0.5 else wrong)
        which = ("short", "long")[random.integers(2)]
        try:
            assert torch.equal(logits_of(model(**(SHORT if which == "short" else LONG))), expected[which])
        except StreamError:
            errors += 1
        if random.random() < 0.2:
            model.sti.use(running_plan(model))
            model.sti.replan()
    assert 0 < errors < 60
    for one in (model, intact):
        one.sti.close()


def running_plan(model: Any) -> Any:
    return model.sti.plan

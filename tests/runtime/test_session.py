from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from sti_hf import STIConfig
from sti_hf.errors import InfeasibleLatencyError
from sti_hf.native import StreamError
from sti_hf.planning import Workload
from sti_hf.shards.layout import FULL_PIECE
from sti_hf.shards.store import TABLES_FILE, ShardStore
from tests.models import tiny_inputs, tiny_model
from tests.runtime.sessions import fail_twice, logits_of, plan_of, planned, random_bits, running, store_of

STOCK = tiny_model(BertForSequenceClassification, hidden_size=64, intermediate_size=256)
INPUTS = tiny_inputs(STOCK)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(STOCK, tmp_path_factory.mktemp("session") / "store")


def test_reads_what_the_plan_says_and_preloaded_pieces_once(store: ShardStore) -> None:
    plan = plan_of(store, random_bits(store, 0), 0.4)
    model = running(store, plan)
    model(**INPUTS)
    assert model.sti.last_run.bytes_read == plan.streamed_bytes + plan.preload_bytes
    for _ in range(3):
        model(**INPUTS)
        assert model.sti.last_run.bytes_read == plan.streamed_bytes
    model.sti.close()


def test_prefetch_reads_ahead_and_changes_nothing_else(store: ShardStore) -> None:
    plan = plan_of(store, random_bits(store, 1), 0.2)
    model = running(store, plan)
    expected = logits_of(model(**INPUTS))
    model.sti.prefetch()
    time.sleep(0.2)
    assert torch.equal(logits_of(model(**INPUTS)), expected)
    run = model.sti.last_run
    assert run.bytes_read == plan.streamed_bytes
    assert run.io[0, 1] < 0, "the first layer was read before the forward began"
    model.sti.close()


def test_timeline_is_measured(store: ShardStore) -> None:
    model = running(store, plan_of(store, random_bits(store, 2)))
    before = time.perf_counter()
    model(**INPUTS)
    total = time.perf_counter() - before
    run = model.sti.last_run
    layers = store.grid.layers
    assert all(len(values) == layers for values in (run.wait, run.compute, run.decompress, run.io, run.start))
    assert (run.compute > 0).all()
    assert (run.decompress > 0).all()
    assert (np.diff(run.start) > 0).all()
    assert (run.io[:, 1] <= run.start).all(), "no layer runs before it is read"
    assert 0 < run.compute.sum() + run.decompress.sum() + run.wait.sum() + run.embedding <= run.total <= total
    assert min(run.before, run.after) > 0
    layers_seconds = float(run.start[-1] - run.start[0] + run.compute[-1] + run.decompress[-1])
    parts = run.embedding + run.before + float(run.wait[0]) + layers_seconds + run.after
    assert parts == pytest.approx(run.total), "what is before and after the layers is all else"
    assert run.tokens == INPUTS["input_ids"].numel()
    model.sti.close()


def test_memory_adds_up_and_the_peak_is_its_bound(store: ShardStore) -> None:
    plan = plan_of(store, random_bits(store, 3), 0.3)
    model = running(store, plan)
    for _ in range(3):
        model(**INPUTS)
    memory = model.sti.memory()
    stock_bytes = sum(parameter.nbytes for parameter in STOCK.parameters())
    assert memory["preload"] == plan.preload_bytes
    assert memory["staging"] == plan.staging_bytes
    largest = max(store.grid.matrix_rows.values()) * store.grid.slices * store.grid.row_length
    assert memory["working"] == 4 * largest, "one matrix in float32"
    assert 0 < memory["resident"] < stock_bytes / 2
    assert memory["peak"] <= memory["resident"] + plan.preload_budget + plan.staging_bytes + memory["working"]
    model.sti.close()
    assert sum(model.sti.memory().values()) < memory["peak"] + 2 * memory["resident"]


def test_a_real_plan_keeps_the_preload_budget(store: ShardStore) -> None:
    model = planned(store, STIConfig(target_latency=0.1, preload_budget=30_000, seq_len=16))
    model(**INPUTS)
    memory = model.sti.memory()
    assert 0 < memory["preload"] <= 30_000
    assert memory["peak"] <= memory["resident"] + 30_000 + memory["staging"] + memory["working"]
    model.sti.close()


def test_replanning_keeps_what_the_preload_buffer_holds(store: ShardStore) -> None:
    model = planned(store, STIConfig(target_latency=0.04, preload_budget=30_000, seq_len=Workload.bucket(33)))
    model(**INPUTS)
    before = model.sti.plan
    model.sti.replan(target_latency=0.05, preload_budget="60KB")
    after = model.sti.plan
    assert (after.target_latency, after.preload_budget) == (0.05, 60_000)
    assert after.bits.sum() > before.bits.sum()
    model(**INPUTS)
    kept = before.preloaded_pieces & after.preloaded_pieces
    assert kept.any()
    missing = sum(
        int(layout.read_ranges(pieces)[:, 1].sum())
        for layout, pieces in zip(store.layouts, after.preloaded_pieces & ~kept)
    )
    assert model.sti.last_run.bytes_read == after.streamed_bytes + missing
    fresh = planned(store, model.sti.config)
    assert torch.equal(logits_of(model(**INPUTS)), logits_of(fresh(**INPUTS)))
    for one in (model, fresh):
        one.sti.close()


def test_plans_are_kept_per_token_bucket(store: ShardStore) -> None:
    model = planned(store, STIConfig(target_latency=0.1, preload_budget=30_000, seq_len=16))
    assert model.sti.plan.workload.tokens == 16
    short = model.sti.plan
    model(**tiny_inputs(STOCK, batch=1, tokens=33))
    assert model.sti.plan.workload.tokens == 64
    long = model.sti.plan
    model(**tiny_inputs(STOCK, batch=4, tokens=16))
    assert model.sti.plan is short, "what stands beside a text does not change its plan"
    model(**tiny_inputs(STOCK, batch=2, tokens=60))
    assert model.sti.plan is long
    model.sti.close()


def test_a_latency_that_cannot_be_met_warns_once_or_raises(store: ShardStore) -> None:
    with pytest.warns(
        UserWarning, match=r"meets the target latency of 1 ms: the fastest, a submodel of 1 x 1, takes about \d+ ms"
    ):
        model = planned(store, STIConfig(target_latency=0.001, seq_len=Workload.bucket(33)))
    model(**INPUTS)
    model.sti.close()
    with pytest.raises(InfeasibleLatencyError, match=r"the fastest, .* takes about"):
        planned(store, STIConfig(target_latency=0.001, strict=True))


def test_threads_take_turns(store: ShardStore) -> None:
    model = running(store, plan_of(store, random_bits(store, 4), 0.2))
    inputs = [tiny_inputs(STOCK, seed=seed) for seed in range(6)]
    expected = [logits_of(model(**one)) for one in inputs]
    results: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        results[index] = logits_of(model(**inputs[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[index], expected[index]) for index in range(6))
    model.sti.close()


def test_a_forked_child_reads_for_itself(store: ShardStore) -> None:
    model = running(store, plan_of(store, random_bits(store, 5), 0.3))
    expected = logits_of(model(**INPUTS))
    model.sti.prefetch()
    child = os.fork()
    if child == 0:
        right = torch.equal(logits_of(model(**INPUTS)), expected)
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(logits_of(model(**INPUTS)), expected)
    model.sti.close()


def test_training_is_refused(store: ShardStore) -> None:
    model = running(store, plan_of(store, random_bits(store, 6)))
    model.train()
    with pytest.raises(RuntimeError, match="for inference only"):
        model(**INPUTS)
    model.eval()
    assert not logits_of(model(**INPUTS)).requires_grad
    model.sti.close()


def test_a_closed_session_says_so(store: ShardStore) -> None:
    model = running(store, plan_of(store, random_bits(store, 7)))
    model.sti.close()
    model.sti.close()
    for call in (lambda: model(**INPUTS), model.sti.prefetch, lambda: model.sti.replan(target_latency=1)):
        with pytest.raises(RuntimeError, match="session is closed"):
            call()


def test_a_failed_forward_leaves_the_session_usable(store: ShardStore) -> None:
    model = running(store, plan_of(store, random_bits(store, 8), 0.3))
    expected = logits_of(model(**INPUTS))
    fail_twice(model, INPUTS)
    assert torch.equal(logits_of(model(**INPUTS)), expected)
    assert len(model.base_model.encoder.layer) == store.grid.layers
    model.sti.close()


def damaged(store: ShardStore, folder: Path, name: str, offset: int) -> ShardStore:
    copy = folder / "damaged"
    shutil.copytree(store.path, copy)
    with (copy / name).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    return ShardStore.open(copy)


@pytest.mark.parametrize("kind", range(FULL_PIECE + 1))
def test_a_flipped_bit_in_any_piece_is_an_error(store: ShardStore, kind: int, tmp_path: Path) -> None:
    layout = store.layouts[1]
    offset = int(layout.piece_offset[kind, 2] + layout.piece_bytes[kind, 2] // 2)
    broken = damaged(store, tmp_path, store.stack.layer_files[1], offset)
    bits = np.full((store.grid.layers, store.grid.slices), 32 if kind == FULL_PIECE else 6)
    model = running(broken, plan_of(broken, bits))
    for _ in range(2):
        with pytest.raises(StreamError, match=r"checksum.*sti verify"):
            model(**INPUTS)
    model.sti.close()


def test_a_flipped_bit_in_an_embedding_row_is_an_error(store: ShardStore, tmp_path: Path) -> None:
    table = store.stack.tables["word_embeddings"]
    broken = damaged(store, tmp_path, TABLES_FILE, table.offset + 40 * table.row_bytes + 3)
    model = running(broken, plan_of(broken, random_bits(broken, 9)))
    model(input_ids=torch.tensor([[39, 41]]))
    with pytest.raises(StreamError, match="checksum"):
        model(input_ids=torch.tensor([[39, 40]]))
    model(input_ids=torch.tensor([[39, 41]]))
    model.sti.close()


def test_a_store_cut_short_while_open_is_an_error(store: ShardStore, tmp_path: Path) -> None:
    copy = tmp_path / "cut"
    shutil.copytree(store.path, copy)
    opened = ShardStore.open(copy)
    bits = np.full((store.grid.layers, store.grid.slices), 32)
    with opened.layer_path(0).open("r+b") as file:
        file.truncate(opened.layouts[2].offset)
    model = running(opened, plan_of(opened, bits))
    with pytest.raises(StreamError, match="cut short"):
        model(**INPUTS)
    model.sti.close()


def test_inputs_embeds_need_no_rows_of_words(store: ShardStore, tmp_path: Path) -> None:
    table, word = store.stack.tables["word_embeddings"], int(INPUTS["input_ids"][0, 0])
    broken = damaged(store, tmp_path, TABLES_FILE, table.offset + word * table.row_bytes)
    model = running(broken, plan_of(broken, np.full((store.grid.layers, store.grid.slices), 32)))
    with pytest.raises(StreamError, match="checksum"):
        model(**INPUTS)
    embeddings = STOCK.get_input_embeddings()(INPUTS["input_ids"]).detach()
    mask = INPUTS["attention_mask"]
    with torch.no_grad():
        expected = logits_of(STOCK(inputs_embeds=embeddings, attention_mask=mask))
    model(inputs_embeds=embeddings, attention_mask=mask)  # reads the rows of positions, which are then cached
    assert torch.allclose(logits_of(model(inputs_embeds=embeddings, attention_mask=mask)), expected, atol=1e-5)
    assert model.sti.last_run.row_bytes_read == 0
    model.sti.close()

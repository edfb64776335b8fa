"""What becomes of threads, descriptors and memory."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from eval import accounting
from sti_hf.errors import SessionClosedError
from sti_hf.shards.store import ShardStore
from tests.models import tiny_inputs, tiny_model
from tests.runtime.sessions import logits_of, plan_of, running, store_of

STOCK = tiny_model(BertForSequenceClassification)
INPUTS = tiny_inputs(STOCK)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(STOCK, tmp_path_factory.mktemp("lifetime") / "store")


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def load(store: ShardStore, preload: float = 0.3) -> Any:
    return running(store, plan_of(store, np.full((store.grid.layers, store.grid.slices), 32), preload))


def threads_and_descriptors() -> tuple[int, int]:
    return accounting.threads(), accounting.descriptors()


@pytest.mark.usefixtures("_no_collector")
def test_a_deleted_model_gives_back_threads_and_descriptors_at_once(store: ShardStore) -> None:
    load(store)(**INPUTS)  # what is made once a process
    before = threads_and_descriptors()
    for _ in range(5):
        model = load(store)
        model(**INPUTS, output_hidden_states=True)
        assert threads_and_descriptors() > before
        del model
        assert threads_and_descriptors() == before


@pytest.mark.usefixtures("_no_collector")
def test_a_part_keeps_what_it_needs(store: ShardStore) -> None:
    states = torch.randn(1, 5, 32)
    model = load(store)
    encoder = model.bert.encoder
    expected = encoder(states)[0]
    before = threads_and_descriptors()
    del model
    assert torch.equal(encoder(states)[0], expected)
    assert threads_and_descriptors() == before
    del encoder
    assert threads_and_descriptors() < before


@pytest.mark.usefixtures("_no_collector")
def test_a_with_block_closes(store: ShardStore) -> None:
    load(store)(**INPUTS)
    before = threads_and_descriptors()
    model = load(store)
    with model.sti as session:
        assert session is model.sti
        model(**INPUTS)
    assert threads_and_descriptors() == before
    for call in (
        lambda: model(**INPUTS),
        lambda: model.bert(**INPUTS),
        lambda: model.bert.encoder(torch.randn(1, 5, 32)),
        lambda: model.bert.encoder.layer[0](torch.randn(1, 5, 32)),
        lambda: model.get_input_embeddings()(INPUTS["input_ids"]),
        lambda: model.sti.replan(target_latency=1),
        lambda: model.sti.prefetch(),
    ):
        with pytest.raises(SessionClosedError, match="load the model again"):
            call()
    model.sti.close()


def test_two_threads_close_and_run(store: ShardStore) -> None:
    with torch.no_grad():
        expected = logits_of(STOCK(**INPUTS))
    for _ in range(10):
        model = load(store)
        start = threading.Barrier(4)

        def run(model: Any = model, start: threading.Barrier = start) -> bool:
            start.wait()
            try:
                return torch.allclose(logits_of(model(**INPUTS)), expected, atol=1e-5)
            except SessionClosedError:
                return True

        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(run) for _ in range(3)]
            pool.submit(lambda model=model, start=start: (start.wait(), model.sti.close())).result()
            assert all(each.result() for each in runs)


@pytest.mark.parametrize("while_running", [False, True])
def test_a_forked_child_answers_from_threads_of_its_own(store: ShardStore, while_running: bool) -> None:
    model = load(store)
    expected = logits_of(model(**INPUTS))
    results: list[int] = []

    def fork(*_: Any) -> None:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                right = [torch.equal(logits_of(model(**INPUTS)), expected) for _ in range(2)]
                model.sti.close()
                code = 0 if all(right) else 2
            finally:
                os._exit(code)
        results.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    if while_running:  # in another thread, which the child does not have
        reached, forked = threading.Event(), threading.Event()
        handle = model.bert.encoder.layer[1].register_forward_pre_hook(
            lambda *_: (reached.set(), forked.wait())[:0] or None
        )
        with ThreadPoolExecutor(1) as pool:
            running_forward = pool.submit(lambda: logits_of(model(**INPUTS)))
            reached.wait()
            handle.remove()
            fork()
            forked.set()
            assert torch.equal(running_forward.result(), expected)
    else:
        model.sti.prefetch()
        fork()
    assert results == [0]
    assert torch.equal(logits_of(model(**INPUTS)), expected)
    model.sti.close()


def test_a_forked_child_does_not_wait_for_the_computing_threads_of_its_parent(store: ShardStore) -> None:
    model = load(store)
    expected = logits_of(model(**INPUTS))
    torch.set_num_threads(2)
    try:
        torch.zeros(1 << 20).exp_()  # enough for both
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            right = torch.equal(logits_of(model(**INPUTS)), expected)
            torch.zeros(1 << 20).exp_()
            os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(1)
        model.sti.close()


def test_a_store_that_is_removed_or_replaced_serves_on(store: ShardStore, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(store.path, tmp_path / "copy")
    model = load(ShardStore.open(tmp_path / "copy"))
    expected = logits_of(model(**INPUTS))
    shutil.move(tmp_path / "copy", tmp_path / "moved")
    assert torch.equal(logits_of(model(**INPUTS)), expected)
    model.sti.use(plan_of(store, np.full((store.grid.layers, store.grid.slices), 32), 0.9))
    assert torch.equal(logits_of(model(**INPUTS)), expected)
    shutil.rmtree(tmp_path / "moved")
    model.sti.use(plan_of(store, np.full((store.grid.layers, store.grid.slices), 32)))
    assert torch.equal(logits_of(model(**INPUTS)), expected)
    model.sti.close()

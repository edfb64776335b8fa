"""Refined runs: what is read when the disk is slow or fast, and that the answer is that of what was read."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertForSequenceClassification

from sti_hf import STIConfig
from sti_hf.integrations.store_model import load_model_on
from sti_hf.native import TIMING, StreamError
from sti_hf.planning.refinement import EXTRA, LONGER, PLANE_FIDELITIES, REQUIRED
from sti_hf.runtime.reads import placement as placement_module
from sti_hf.runtime.reads.placement import Placement
from sti_hf.runtime.reads.refinement import Refinement
from sti_hf.runtime.reads.streamer import ShardStreamer
from sti_hf.runtime.session import STISession
from sti_hf.shards.layout import BLOCK, FULL, kinds_of
from sti_hf.shards.store import ShardStore
from tests.models import tiny_inputs, tiny_model
from tests.runtime.sessions import (
    EXACT,
    Planned,
    damaged,
    device,
    fail_twice,
    logits_of,
    plan_of,
    running,
    stock_with_plan_weights,
    store_of,
)

STOCK = tiny_model(BertForSequenceClassification, hidden_size=128, intermediate_size=512, num_hidden_layers=4)
INPUTS = tiny_inputs(STOCK)
RATE = 1e6
"""Bytes a second that plans count on."""
T = 0.5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(STOCK, tmp_path_factory.mktemp("refinement") / "store")


@pytest.fixture(autouse=True)
def _small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many requests a layer as a layer of usual size has."""
    monkeypatch.setattr(placement_module, "REQUEST_BYTES", 2 * BLOCK)


Load = Callable[..., Any]


@pytest.fixture
def load() -> Iterator[Load]:
    """Makes models from a store, whose disk has a `rate` of its own (bytes a second, 0: as fast as it is)."""
    models = []

    def load(store: ShardStore, rate: float = 0.0, **options: Any) -> Any:
        config = STIConfig(**{"target_latency": T, "preload_budget": 0, "seq_len": 16, "refine": True, **options})

        plan = Planned(store, device(bytes_per_second=RATE))
        session = STISession(store, config, plan, EXACT, rate)
        models.append(load_model_on(store, session))
        session._engines.layers.streamer.stop()  # what was read before the first forward would be a head start
        return models[-1]

    yield load
    for model in models:
        model.sti.close()


def set_rate(model: Any, rate: float) -> None:
    """From now on the disk of the model's shards has this rate."""
    engine = model.sti._engines.layers
    engine.streamer.close()
    engine.streamer = ShardStreamer(model.sti.store, engine.streamer.prepared, rate)


def twin(store: ShardStore, bits: np.ndarray) -> torch.Tensor:
    """What a stock model with these fidelities answers."""
    with torch.no_grad():
        return logits_of(stock_with_plan_weights(copy.deepcopy(STOCK), store, bits)(**INPUTS))


def check_answer(store: ShardStore, model: Any, output: Any) -> np.ndarray:
    """The answer is that of the fidelities that were executed, which are returned, and no shard has less than the
    lowest."""
    bits = model.sti.last_run.bits
    assert ((bits >= 2) == (model.sti.plan.bits > 0)).all()
    assert torch.allclose(logits_of(output), twin(store, bits), atol=1e-5)
    return bits


def test_with_time_to_spare_planes_beyond_the_plan_are_read(store: ShardStore, load: Load) -> None:
    model = load(store)
    plan = model.sti.plan
    longer = load(store, target_latency=LONGER * T, refine=False).sti.plan
    for _ in range(3):
        bits = check_answer(store, model, model(**INPUTS))
        assert (bits >= plan.bits).all()
        assert (bits <= np.maximum(plan.bits, longer.bits)).all()
        assert bits.sum() > plan.bits.sum()
        assert model.sti.last_run.bytes_read > plan.streamed_bytes


def test_without_refine_the_plan_is_executed(store: ShardStore, load: Load) -> None:
    for rate in (0.0, 0.6 * RATE):
        model = load(store, rate, refine=False)
        output = model(**INPUTS)
        assert (check_answer(store, model, output) == model.sti.plan.bits).all()
        assert model.sti.last_run.bytes_read == model.sti.plan.streamed_bytes
        assert model.sti.memory()["staging"] == model.sti.plan.staging_bytes


def test_a_slow_disk_costs_planes_and_no_time(store: ShardStore, load: Load) -> None:
    model = load(store, 0.6 * RATE)
    plan = model.sti.plan
    lowest = sum(
        int(layout.read_ranges(layout.pieces_of(row))[:, 1].sum())
        for layout, row in zip(store.layouts, np.minimum(plan.bits, 2))
    )
    assert plan.streamed_bytes > 0.8 * RATE * T > 0.6 * RATE * T > lowest, "the test's own premise"
    for _ in range(2):
        bits = check_answer(store, model, model(**INPUTS))
        assert (bits <= plan.bits).all()
        assert bits.sum() < plan.bits.sum()
        assert lowest <= model.sti.last_run.bytes_read <= 1.1 * 0.6 * RATE * T, "what such a disk reads within T"

    set_rate(model, 0.0)
    assert (check_answer(store, model, model(**INPUTS)) >= plan.bits).all(), "the next inference is whole again"


def test_a_disk_that_cannot_keep_up_leaves_the_lowest_planes(store: ShardStore, load: Load) -> None:
    model = load(store, 0.3 * RATE)
    bits = check_answer(store, model, model(**INPUTS))
    assert (bits[1:] == 2).all()


def test_preloaded_planes_are_there_on_any_disk(store: ShardStore, load: Load) -> None:
    model = load(store, preload_budget="150KB")
    model(**INPUTS)
    plan = model.sti.plan
    assert plan.preloaded.any() and not plan.preloaded.all()
    set_rate(model, 0.2 * RATE)
    bits = check_answer(store, model, model(**INPUTS))
    assert (bits[plan.preloaded] >= plan.bits[plan.preloaded]).all()
    assert (bits < plan.bits).any()


def test_the_run_that_fills_the_preload_buffer_reads_nothing_beyond_the_plan(store: ShardStore, load: Load) -> None:
    model = load(store, 0.2 * RATE, preload_budget="100KB")
    set_rate(model, 0.0)
    assert (check_answer(store, model, model(**INPUTS)) <= model.sti.plan.bits).all()
    assert (check_answer(store, model, model(**INPUTS)).sum()) > model.sti.plan.bits.sum()


def test_prefetched_planes_count(store: ShardStore, load: Load) -> None:
    model = load(store)
    model.sti.prefetch()
    time.sleep(0.3)  # a busy machine does not run the reading thread at once
    check_answer(store, model, model(**INPUTS))
    run = model.sti.last_run
    assert run.io[0, 0] < 0
    assert (run.bits >= model.sti.plan.bits).all()


def test_a_bounded_staging_buffer_stays_bounded(store: ShardStore, load: Load) -> None:
    free = load(store)
    enlarged = free.sti.memory()["staging"]
    assert enlarged > free.sti.plan.staging_bytes
    budget = free.sti.plan.staging_bytes
    bounded = load(store, staging_budget=budget)
    bits = check_answer(store, bounded, bounded(**INPUTS))
    assert bounded.sti.memory()["staging"] <= budget
    assert (bits == bounded.sti.plan.bits).all(), "no room beyond the plan, and time enough for it"


def test_a_given_plan_is_refined_downwards_alone(store: ShardStore, load: Load) -> None:
    model = load(store)
    plan = dataclasses.replace(model.sti.plan)
    model.sti.use(plan)
    assert (check_answer(store, model, model(**INPUTS)) == plan.bits).all()


def test_a_plan_with_full_weights_runs_as_planned(store: ShardStore, load: Load) -> None:
    model = load(store, 0.6 * RATE)
    bits = np.full((store.grid.layers, store.grid.slices), 3)
    bits[1, 2] = FULL
    model.sti.use(plan_of(store, bits))
    assert (check_answer(store, model, model(**INPUTS)) == bits).all()


def test_damage_matters_only_in_what_is_read(store: ShardStore, load: Load, tmp_path: Path) -> None:
    layer = store.grid.layers - 1
    kind = int(load(store).sti.plan.bits[layer, 0])
    assert kind > 2
    broken = damaged(store, tmp_path / "broken", layer, kind)
    model = load(broken, 0.3 * RATE)
    check_answer(store, model, model(**INPUTS))
    set_rate(model, 0.0)
    for _ in range(2):
        with pytest.raises(StreamError, match=r"checksum.*sti verify"):
            model(**INPUTS)
    set_rate(model, 0.3 * RATE)
    check_answer(store, model, model(**INPUTS))


def test_damage_in_the_lowest_planes_is_an_error(store: ShardStore, load: Load, tmp_path: Path) -> None:
    model = load(damaged(store, tmp_path / "broken", 1, 2), 0.3 * RATE)
    with pytest.raises(StreamError, match="checksum"):
        model(**INPUTS)


def test_a_failed_forward_leaves_the_session_usable(store: ShardStore, load: Load) -> None:
    model = load(store, 0.6 * RATE)
    fail_twice(model, INPUTS)
    check_answer(store, model, model(**INPUTS))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), preload=st.sampled_from([0.0, 0.4, 1.0]))
def test_any_cut_gives_the_fidelities_whose_planes_are_all_there(store: ShardStore, seed: int, preload: float) -> None:
    random = np.random.default_rng(seed)
    shape = store.grid.layers, store.grid.slices
    plan = plan_of(store, random.choice(PLANE_FIDELITIES, shape), preload, seed=seed)
    placement = Placement(store, plan, np.maximum(plan.bits, random.choice(PLANE_FIDELITIES, shape)))
    requests, pieces = placement.streamed_requests
    purposes = placement.purposes(requests)
    refinement = Refinement(placement, plan, requests)
    completed = np.repeat(np.arange(len(requests)), requests["pieces"])
    for step, placed in enumerate(placement.layers):
        mine = np.flatnonzero(requests["step"] == step)
        assert (np.diff(purposes[mine]) >= 0).all(), "what is needed most comes first"
        layout = store.layouts[placed.layer]
        for count in range((purposes[mine] == REQUIRED).sum(), len(mine) + 1):
            times = np.full(len(requests), np.nan, dtype=TIMING)
            times[mine[:count]] = 1.0, 1.0
            there = {(int(kind), int(index)) for kind, index in np.argwhere(placed.preloaded)}
            for location, _, _, offset in pieces[np.isin(completed, mine[:count])].tolist():
                found = np.argwhere((layout.piece_offset == offset) & (layout.piece_bytes > 0))
                assert placed.locations(layout)[tuple(found[0])] == location
                there.add(tuple(found[0].tolist()))
            executed = refinement.fidelities(step, times)
            for index, bits in enumerate(executed.tolist()):
                best = [
                    fidelity
                    for fidelity in PLANE_FIDELITIES
                    if all(
                        (kind, index) in there or not layout.piece_bytes[kind, index] for kind in kinds_of(fidelity)
                    )
                ]
                assert bits == max(best)


def test_a_refined_run_computes_what_a_plain_one_does(store: ShardStore, load: Load) -> None:
    model = load(store)
    for rate in (0.0, 0.6 * RATE):
        set_rate(model, rate)
        output = model(**INPUTS)
        plain = running(store, plan_of(store, check_answer(store, model, output)))
        assert torch.equal(logits_of(plain(**INPUTS)), logits_of(output))
        plain.sti.close()


@pytest.mark.parametrize("target", [0.3, 0.4, 0.5, 0.7])
@pytest.mark.parametrize("preload", [0, "150KB"])
def test_reading_at_the_planned_rate_is_never_late(
    store: ShardStore, load: Load, target: float, preload: int | str
) -> None:
    session = load(store, target_latency=target, preload_budget=preload).sti
    plan, placement = session.plan, session._engines.layers.streamer.prepared.placement
    requests, _ = placement.streamed_requests
    chosen = placement.purposes(requests) != EXTRA
    nothing_read = np.full(len(requests), np.nan, dtype=TIMING)
    latest = Refinement(placement, plan, requests).latest(0.0, nothing_read, 0.0)[chosen]
    sizes = requests["length"][chosen]
    rows = plan.timeline.io_start[0]
    # A request is begun when the one before the last one has ended.
    begins = rows + (np.cumsum(sizes) - sizes - np.concatenate(([0], sizes[:-1]))) / RATE
    assert (begins <= latest).all()
    assert np.isfinite(latest).any()

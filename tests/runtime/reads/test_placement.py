from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.planning import ExecutionPlan
from sti_hf.runtime.buffers import LOCATION_SHIFT, PRELOAD, STAGING
from sti_hf.runtime.reads.placement import REQUEST_BYTES, Placement
from sti_hf.shards.layout import BLOCK
from sti_hf.shards.store import ShardStore
from tests.models import TASK_HEADS, tiny_model
from tests.runtime.sessions import plan_of, random_bits, store_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    # Large enough that a layer takes several requests.
    model = tiny_model(TASK_HEADS["bert"][0], hidden_size=128, intermediate_size=512)
    return store_of(model, tmp_path_factory.mktemp("placement") / "store")


def execute(
    placement: Placement, raw: bytes, requests: np.ndarray, pieces: np.ndarray, order: str
) -> list[np.ndarray]:
    """Runs requests by hand into buffers, checking each piece when its request is done and again when its layer runs.

    `order` "early": every read as soon as it may begin; "late": only when its layer is due. Returns the two buffers.
    """
    buffers = [np.zeros(placement.preload_bytes, np.uint8), np.zeros(placement.staging_bytes, np.uint8)]
    released, following, piece = 0, 0, 0
    for step in range(len(placement.layers)):
        due = []
        while following < len(requests) and (requests["step"][following] <= step or order == "early"):
            _, offset, length, target, of_step, wait_for, count = requests[following].tolist()
            if wait_for > released:
                assert of_step > step, "a layer waits for itself"
                break
            start = target & ((1 << LOCATION_SHIFT) - 1)
            data = np.frombuffer(raw[offset : offset + length].ljust(length, b"\0"), np.uint8)
            buffers[target >> LOCATION_SHIFT][start : start + length] = data
            due += [(of_step, *row) for row in pieces[piece : piece + count].tolist()]
            following, piece = following + 1, piece + count
        check_step(placement, buffers, raw, step)
        assert all(of_step >= step for of_step, *_ in due)
        released = step + 1
    assert following == len(requests)
    assert piece == len(pieces)
    return buffers


def check_step(placement: Placement, buffers: list[np.ndarray], raw: bytes, step: int) -> None:
    """At the time a layer runs, every piece it needs must be where its location says."""
    placed = placement.layers[step]
    layout = placement.store.layouts[placed.layer]
    places = placed.locations(layout)
    for kind, index in np.argwhere(placed.preloaded | placed.streamed):
        place, size, offset = (int(a[kind, index]) for a in (places, layout.piece_bytes, layout.piece_offset))
        buffer, start = buffers[place >> LOCATION_SHIFT], place & ((1 << LOCATION_SHIFT) - 1)
        assert bytes(buffer[start : start + size]) == raw[offset : offset + size]
    assert (places[~(placed.preloaded | placed.streamed)] == -1).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    preload=st.sampled_from([0.0, 0.3, 1.0]),
    spare=st.integers(0, 400).map(lambda blocks: blocks * BLOCK),
    order=st.sampled_from(["early", "late"]),
    strategy=st.sampled_from(["sti", "load_exec"]),
)
def test_every_piece_is_in_place_when_its_layer_runs(
    store: ShardStore, seed: int, preload: float, spare: int, order: str, strategy: str
) -> None:
    plan = plan_of(store, random_bits(store, seed), preload, seed=seed, strategy=strategy)
    if strategy == "sti":
        read = [covered_bytes(store, layer, pieces) for layer, pieces in streamed(store, plan)]
        plan = plan_of(
            store, random_bits(store, seed), preload, seed=seed, staging_bytes=max(read) + spare, strategy=strategy
        )
    placement = Placement(store, plan)
    requests, pieces = placement.requests([placed.preloaded for placed in placement.layers])
    assert requests["length"].sum() == plan.streamed_bytes + plan.preload_bytes
    assert (requests["length"] <= REQUEST_BYTES).all()
    assert (requests["offset"] % BLOCK == 0).all() and (requests["length"] % BLOCK == 0).all()
    assert len(pieces) == sum(int((p.preloaded | p.streamed).sum()) for p in placement.layers)
    execute(placement, store.layer_path(0).read_bytes(), requests, pieces, order)


def covered_bytes(store: ShardStore, layer: int, pieces: np.ndarray) -> int:
    _, lengths = store.layouts[layer].read_ranges(pieces).T
    return int(lengths.sum())


def streamed(store: ShardStore, plan: ExecutionPlan) -> list[tuple[int, np.ndarray]]:
    needed = ((layer, store.layouts[layer].pieces_of(plan.bits[layer])) for layer in plan.layers)
    return [(layer, pieces & ~plan.preloaded_pieces[layer]) for layer, pieces in needed]


def test_a_filled_preload_buffer_is_not_read_again(store: ShardStore) -> None:
    plan = plan_of(store, random_bits(store, 3), 0.5)
    placement = Placement(store, plan)
    requests, _ = placement.requests([np.zeros_like(placed.preloaded) for placed in placement.layers])
    assert set(requests["target"] >> LOCATION_SHIFT) == {STAGING}
    assert requests["length"].sum() == plan.streamed_bytes
    first, _ = placement.requests([placed.preloaded for placed in placement.layers])
    assert set(first["target"] >> LOCATION_SHIFT) == {PRELOAD, STAGING}

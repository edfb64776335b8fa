"""Fidelities: what an incremental change costs, and whether it is valid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.planning.fidelity import Fidelities
from sti_hf.planning.submodel import Submodel
from sti_hf.shards.layout import FIDELITIES
from tests.planning.problems import make_layouts, make_profile, make_request

LAYERS, SLICES = 3, 4
some_slices = st.sets(st.integers(0, SLICES - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))
units = st.tuples(st.integers(0, LAYERS - 1), some_slices)
changes = st.lists(st.tuples(units, st.sampled_from(FIDELITIES), st.booleans()), max_size=12)


def cost(submodel: Submodel, bits: np.ndarray) -> float:
    num_bytes, requests = submodel.streamed(bits)
    profile = submodel.request.profile
    reading = profile.io_seconds(num_bytes, requests) + profile.delay_seconds(num_bytes)
    return float((reading + submodel.decompress_seconds(bits)).sum())


@given(changes, st.floats(0, 1.5), st.floats(0.8, 1.2), st.sampled_from([1, 3]))
@settings(deadline=None)
def test_changes_cost_and_keep_what_a_fresh_start_says(
    steps: list[tuple[tuple[int, tuple[int, ...]], int, bool]], preload: float, hurry: float, seed: int
) -> None:
    request = make_request(make_layouts(LAYERS, SLICES, "minilm", seed=seed), make_profile(request_seconds=3e-4))
    whole = Submodel(request, LAYERS, SLICES)
    threes = whole.uniform(3)
    request = replace(
        request,
        preload_budget=int(preload * whole.streamed(threes)[0].sum()),
        target_latency=hurry * whole.latency(threes),
    )
    submodel = Submodel(request, LAYERS, SLICES)
    bits = submodel.uniform(2)
    state = Fidelities(submodel, bits)
    for (layer, slices), fidelity, undone in steps:
        changed = bits.copy()
        changed[layer, list(slices)] = fidelity
        assert state.change((layer, slices), fidelity) == pytest.approx(
            cost(submodel, changed) - cost(submodel, bits), abs=1e-12
        )
        assert state.valid == submodel.is_valid(changed)
        if undone:
            state.undo()
        else:
            bits = changed
        assert (np.array(state.bits) == bits).all()
        assert state.valid == submodel.is_valid(bits)


def test_a_bounded_staging_buffer_bounds_layers() -> None:
    layouts = make_layouts(2, SLICES)
    threes = Submodel(make_request(layouts), 2, SLICES)
    limit = int(threes.streamed(threes.uniform(3))[0].max())
    submodel = Submodel(make_request(layouts, staging_budget=limit), 2, SLICES)
    state = Fidelities(submodel, submodel.uniform(3))
    assert state.valid
    state.change((1, (0, 1)), 5)
    assert not state.valid
    assert not submodel.is_valid(np.array(state.bits))
    state.undo()
    assert state.valid

"""Importance profiles and the distortions that they track."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.planning import AdditiveImportance, ImportanceProfile, LayerOrder, default_importance
from sti_hf.shards.layout import FIDELITIES
from tests.planning.problems import make_importance, make_layouts

LAYERS, SLICES = 3, 4


@pytest.mark.parametrize("profile", [make_importance(LAYERS, SLICES), LayerOrder(LAYERS)], ids=["additive", "layers"])
@given(steps=st.lists(st.tuples(st.integers(0, LAYERS * SLICES - 1), st.sampled_from(FIDELITIES)), max_size=10))
@settings(deadline=None)
def test_falls_are_differences_of_distortion(profile: ImportanceProfile, steps: list[tuple[int, int]]) -> None:
    bits = np.full((LAYERS, SLICES), 2)
    tracked = profile.track(bits)
    units = profile.units(range(LAYERS), SLICES)
    for index, fidelity in steps:
        layer, slices = unit = units[index % len(units)]
        before = profile.distortion(bits)
        fall = tracked.fall(unit, fidelity)
        tracked.change(unit, fidelity)
        bits[layer, list(slices)] = fidelity
        assert before - profile.distortion(bits) == pytest.approx(fall, abs=1e-12)


def test_distortion_counts_only_shards_that_run() -> None:
    profile = make_importance(LAYERS, SLICES)
    bits = np.zeros((LAYERS, SLICES), dtype=np.int64)
    assert profile.distortion(bits) == 0
    bits[1, 2] = 3
    assert profile.distortion(bits) == profile.table[1, 2, FIDELITIES.index(3)]
    assert LayerOrder(LAYERS).distortion(bits) == pytest.approx((1 + 2 / 3) * 4.0**-3)


def test_units_are_shards_with_the_most_important_first() -> None:
    table = np.zeros((2, 3, len(FIDELITIES)))
    table[:, :, 0] = [[1, 5, 9], [2, 7, 3]]
    profile = AdditiveImportance(table)
    assert profile.units([0, 1], 2) == [(1, (1,)), (0, (1,)), (1, (0,)), (0, (0,))]
    assert profile.units([0], 3) == [(0, (2,)), (0, (1,)), (0, (0,))]


def test_the_default_raises_whole_layers_evenly_and_from_the_first() -> None:
    profile = default_importance(make_layouts(5, SLICES)[0].grid)
    units = profile.units(range(5), 3)
    assert units == [(layer, (0, 1, 2)) for layer in range(5)]
    bits = np.full((5, SLICES), 2)
    tracked = profile.track(bits)
    order = []
    for _ in range(10):
        # Every plane costs the same.
        best = max(units, key=lambda unit: tracked.fall(unit, int(bits[unit[0], 0]) + 1))
        bits[best[0]] += 1
        tracked.change(best, int(bits[best[0], 0]))
        order.append((best[0], int(bits[best[0], 0])))
    assert order == [(layer, level) for level in (3, 4) for layer in range(5)]


def test_full_is_worth_no_more_than_six_bits_by_default() -> None:
    profile = LayerOrder(2)
    tracked = profile.track(np.full((2, SLICES), 6))
    assert tracked.fall((0, (0,)), 32) == 0


@pytest.mark.parametrize(
    ("table", "fidelities", "match"),
    [
        (np.zeros((2, 3)), (2, 3), "shape"),
        (np.zeros((2, 3, 2)), (2, 3, 4), "one entry"),
        (np.zeros((2, 3, 2)), (3, 2), "ascending"),
        (np.full((2, 3, 2), -1.0), (2, 3), "not negative"),
        (np.full((2, 3, 2), np.nan), (2, 3), "finite"),
    ],
)
def test_distortions_that_make_no_sense(table: np.ndarray, fidelities: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        AdditiveImportance(table, fidelities)

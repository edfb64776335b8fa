"""The paper's importance as a profile."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sti_hf.planning.exhaustive import ExhaustiveImportance

GRID = st.tuples(st.integers(1, 5), st.integers(1, 6))


@st.composite
def measured(draw: st.DrawFn) -> ExhaustiveImportance:
    """Accuracies on 50 sentences, many of them equal, and losses."""
    layers, slices = draw(GRID)
    count = layers * slices
    right = draw(st.lists(st.integers(20, 30), min_size=count, max_size=count))
    losses = draw(st.lists(st.floats(0.1, 2.0), min_size=count, max_size=count))
    shape = (layers, slices)
    base_bits = draw(st.sampled_from([2, 3, 5]))
    return ExhaustiveImportance(np.reshape(right, shape) / 50, np.reshape(losses, shape), base_bits, 0.4, 1.0)


@given(measured())
def test_ranked_by_score_then_loss(profile: ExhaustiveImportance) -> None:
    layers, slices = profile.scores.shape
    ranked = [(layer, index) for layer, (index,) in profile.units(range(layers), slices)]
    assert sorted(ranked) == [(layer, index) for layer in range(layers) for index in range(slices)]
    keys = [(-round(profile.scores[shard], 9), profile.losses[shard]) for shard in ranked]
    for (score, loss), (next_score, next_loss) in pairwise(keys):
        assert score < next_score or (score == next_score and loss <= next_loss + 1e-9)
    for layer, order in enumerate(profile.order()):
        assert sorted(order) == list(range(slices))
        assert (np.diff(profile.worth()[layer, order]) <= 0).all()


@given(measured())
def test_distortions(profile: ExhaustiveImportance) -> None:
    shape, worth = profile.scores.shape, profile.worth()
    assert (worth > 0).all()
    assert profile.distortion(np.full(shape, 32)) == profile.distortion(np.full(shape, 6)) == 0
    base = np.full(shape, profile.base_bits)
    distortions = [profile.distortion(np.full(shape, bits)) for bits in (2, 3, 4, 5, 6)]
    assert distortions == sorted(distortions, reverse=True)
    tracked = profile.track(base)
    for shard in np.ndindex(shape):
        assert tracked.fall((shard[0], (shard[1],)), 32) == pytest.approx(worth[shard])
    steps = np.diff(np.unique(profile.scores.round(9)))
    step = steps.min() if len(steps) else 1.0
    for one in np.ndindex(shape):
        for other in np.ndindex(shape):
            apart = profile.scores[one] - profile.scores[other]
            assert abs(worth[one] - worth[other] - apart) <= step / 2 + 1e-9, "the metric's own differences, or ties"


@given(measured(), st.randoms(use_true_random=False))
def test_reordered(profile: ExhaustiveImportance, random) -> None:
    layers, slices = profile.scores.shape
    order = np.array([random.sample(range(slices), slices) for _ in range(layers)])
    moved = profile.reordered(order)
    for layer in range(layers):
        for k in range(slices):
            assert moved.scores[layer, k] == profile.scores[layer, order[layer, k]]
            assert moved.worth()[layer, k] == profile.worth()[layer, order[layer, k]]
    back = moved.reordered(np.argsort(order, axis=1))
    assert np.array_equal(back.table, profile.table)
    again = ExhaustiveImportance.from_arrays(profile.arrays())
    assert np.array_equal(again.table, profile.table)
    assert (again.base_bits, again.base_score, again.base_loss) == (profile.base_bits, 0.4, 1.0)


@pytest.mark.parametrize(
    ("scores", "losses", "base", "sentence"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), 2, "one shape"),
        (np.zeros(3), np.zeros(3), 2, "one shape"),
        (np.full((1, 1), np.nan), np.zeros((1, 1)), 2, "finite"),
        (np.zeros((1, 1)), np.full((1, 1), np.inf), 2, "finite"),
        (np.zeros((1, 1)), np.zeros((1, 1)), 6, "2 to 5 bits, not 6"),
        (np.zeros((1, 1)), np.zeros((1, 1)), 1, "2 to 5 bits, not 1"),
    ],
)
def test_mistakes(scores: np.ndarray, losses: np.ndarray, base: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ExhaustiveImportance(scores, losses, base, 0.0, 0.0)

"""Strips of the vocabulary."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sti_hf.model.vocabulary import STRIP_WEIGHTS, STRIPS, VOCABULARY, vocabulary_grid


@given(words=st.integers(1, 300_000), eighths=st.integers(1, 1024))
def test_strips_have_room_for_every_word_and_little_more(words: int, eighths: int) -> None:
    grid = vocabulary_grid(words, 8 * eighths)
    assert grid is not None and grid.matrices == (VOCABULARY,) and grid.slices == STRIPS
    strips = grid.layers * grid.slices
    assert words <= strips * grid.slice_rows < words + strips
    assert grid.slice_weights <= STRIP_WEIGHTS


def test_rows_that_are_no_whole_bytes_of_a_plane_are_not_cut() -> None:
    assert vocabulary_grid(100, 36) is None

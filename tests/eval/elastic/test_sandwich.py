"""Which submodels a step runs, and what they are compared by."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from eval.elastic.distillation import logit_loss, state_loss
from eval.elastic.sandwich import sandwich
from sti_hf.model import Grid

GRID = Grid(3, 8, 16, (("q", 2),))


@given(
    widths=st.sets(st.integers(1, 8)),
    sampled=st.integers(0, 9),
    fidelities=st.sets(st.sampled_from([2, 3, 4, 5, 6, 32])),
    seed=st.integers(0, 99),
)
def test_sandwiches(widths: set[int], sampled: int, fidelities: set[int], seed: int) -> None:
    passes = sandwich(GRID, sorted(widths), sampled, sorted(fidelities), np.random.default_rng(seed))
    again = sandwich(GRID, sorted(widths), sampled, sorted(fidelities), np.random.default_rng(seed))
    assert [one.width for one in passes] == [one.width for one in again]
    assert passes[0].width == 8
    assert passes[0].bits is None
    narrower = [one.width for one in passes if one.width < 8]
    assert len(set(narrower)) == len(narrower)
    assert set(narrower) <= widths
    below = widths - {8}
    assert len(narrower) == min(len(below), sampled + 1)
    if below:
        assert min(below) in narrower
    assert len(passes) == 1 + bool(fidelities) + len(narrower)
    for one in passes[1:]:
        assert (one.bits is not None) == bool(fidelities)
        if fidelities:
            assert one.bits.shape == (3, 8)
            assert set(one.bits.flat) <= ({min(fidelities)} if one.width == 8 else fidelities)


def test_logits_are_compared_by_divergence() -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=teacher), torch.distributions.Categorical(logits=student)
    )
    torch.testing.assert_close(logit_loss(student, teacher), expected.mean())
    assert logit_loss(teacher, teacher) == 0
    one, other = torch.randn(5, 1), torch.randn(5, 1)
    torch.testing.assert_close(logit_loss(one, other), F.mse_loss(one, other))


def test_states_are_compared_where_there_are_tokens() -> None:
    student, teacher = [torch.randn(2, 3, 4) for _ in range(2)], [torch.randn(2, 3, 4) for _ in range(3)]
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    expected = sum(
        (one[row, token] - other[row, token]).square().mean() / 4
        for one, other in zip(student, teacher)
        for row, token in mask.nonzero().tolist()
    )
    torch.testing.assert_close(state_loss(student, teacher, mask), expected)

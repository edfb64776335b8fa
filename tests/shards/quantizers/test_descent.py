"""Codes bettered by descent, and codebooks by conjugate gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from sti_hf.shards.layout import PLANES
from sti_hf.shards.quantizers.calibrated.error_feedback import descend, feedback_codes
from sti_hf.shards.quantizers.calibrated.least_squares import look_up, refine_codebook
from tests.shards.calibration import EQUAL, correlated_problem, nearest, none


def joint_error(
    codes: Tensor, weights: Tensor, scales: Tensor, codebooks: dict[int, Tensor], moments: dict[int, Tensor]
) -> Tensor:
    """Summed over all fidelities, `[groups, rows]`."""
    total = torch.zeros(weights.shape[:2])
    for bits, moment in moments.items():
        wrong = weights - look_up(codebooks[bits], codes >> (PLANES - bits)) * scales[..., None]
        total += EQUAL[bits] * ((wrong @ moment) * wrong).sum(-1)
    return total


def test_descent_ends_where_no_single_code_is_better() -> None:
    weights, scales, codebooks, _, moment = correlated_problem(4, 12)
    moments = {bits: moment * bits for bits in EQUAL}
    codes = feedback_codes(weights, scales[..., None], codebooks, moments, EQUAL, none(weights))
    error = joint_error(codes, weights, scales, codebooks, moments)
    for _ in range(30):
        codes = descend(codes, weights, scales[..., None], codebooks, moments, EQUAL, none(weights))
        better = joint_error(codes, weights, scales, codebooks, moments)
        assert (better <= error * (1 + 1e-4)).all()
        error = better
    for column in range(weights.shape[2]):
        for code in range(2**PLANES):
            other = codes.clone()
            other[..., column] = code
            assert (joint_error(other, weights, scales, codebooks, moments) > error * (1 - 1e-4)).all()


def test_descent_in_blocks_is_plain_descent(monkeypatch) -> None:
    weights, scales, codebooks, _, moment = correlated_problem()
    start = nearest(weights)[0]
    results = []
    for block in (1, 7, 1000):
        monkeypatch.setattr("sti_hf.shards.quantizers.calibrated.error_feedback.BLOCK_COLUMNS", block)
        moments = dict.fromkeys(EQUAL, moment)
        results.append(descend(start, weights, scales[..., None], codebooks, moments, EQUAL, none(weights)))
    assert (results[0] == results[2]).float().mean() > 0.99  # equal but for rounding
    assert (results[1] == results[2]).float().mean() > 0.99


def test_outliers_are_exact_in_a_descent() -> None:
    weights, scales, codebooks, _, moment = correlated_problem()
    moments = dict.fromkeys(EQUAL, moment)
    outlier = none(weights)
    outlier[..., ::5] = True
    wild = torch.where(outlier, weights * 50, weights)
    start = nearest(weights)[0]
    codes = descend(start, wild, scales[..., None], codebooks, moments, EQUAL, outlier)
    tame = descend(start, weights, scales[..., None], codebooks, moments, EQUAL, outlier)
    assert torch.equal(codes[~outlier], tame[~outlier])


def test_a_refined_codebook_is_that_of_least_squares(monkeypatch) -> None:
    monkeypatch.setattr("sti_hf.shards.quantizers.calibrated.least_squares.CODEBOOK_RIDGE", 0.0)
    monkeypatch.setattr("sti_hf.shards.quantizers.calibrated.least_squares.GRADIENT_STEPS", 30)
    weights, scales, codebooks, _, moment = correlated_problem()
    codes = nearest(weights)[0] >> 3
    refined = refine_codebook(weights, codes, scales[..., None], codebooks[3], moment)
    root = torch.linalg.cholesky(moment[0].double())
    for group in range(2):
        chosen = torch.nn.functional.one_hot(codes[group].long(), 8).double() * scales[group, :, None, None]
        design = torch.einsum("rcv,cd->rdv", chosen, root).flatten(0, 1)
        expected = torch.linalg.lstsq(design, (weights[group].double() @ root).flatten()[:, None]).solution[:, 0]
        assert torch.allclose(refined[group].double(), expected, atol=1e-3)

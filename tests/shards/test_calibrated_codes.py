from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    BertForSequenceClassification,
)

from sti_hf.model import get_architecture
from sti_hf.shards.layout import PLANES
from sti_hf.shards.quantizers.calibrated.error_feedback import CodeSearch, feedback_codes
from sti_hf.shards.quantizers.calibrated.forward_passes import CalibrationPass
from sti_hf.shards.quantizers.calibrated.least_squares import (
    fit_codebook,
    fit_scales_of_inputs,
    fit_scales_of_outputs,
    look_up,
)
from sti_hf.shards.quantizers.calibrated.nested_fit import fit_layer
from sti_hf.shards.quantizers.calibrated.outliers import SparseWeights, find_outliers
from sti_hf.shards.quantizers.calibrated.scratch import Scratch
from tests.models import tiny_model
from tests.shards.calibration import (
    EQUAL,
    all_codes,
    batches,
    correlated_problem,
    layer_shards,
    nearest,
    none,
    output_error,
)


def test_codes_found_are_those_of_a_search_over_all_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    codebooks = {bits: torch.randn(3, 2**bits, generator=generator) for bits in EQUAL}
    targets = {bits: torch.randn(3, 5, generator=generator) for bits in EQUAL}
    codes = CodeSearch(codebooks, EQUAL, list(EQUAL))(torch.stack(list(targets.values())))
    for group in range(3):
        for row in range(5):
            costs = all_codes(targets, codebooks, group, row)
            assert costs[codes[group, row]] == pytest.approx(min(costs))


def test_feedback_lowers_the_output_error_of_every_fidelity_that_has_it() -> None:
    weights, scales, codebooks, inputs, moment = correlated_problem()
    uncalibrated, _, _ = nearest(weights)
    codes = feedback_codes(weights, scales[..., None], codebooks, {2: moment, 3: moment}, EQUAL, none(weights))
    for bits in (2, 3):
        errors = [
            output_error(weights, look_up(codebooks[bits], kind >> (PLANES - bits)) * scales[..., None], inputs)
            for kind in (uncalibrated, codes)
        ]
        assert errors[1] < 0.8 * errors[0]


def test_feedback_in_blocks_is_plain_feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, scales, codebooks, _, moment = correlated_problem()
    module = "sti_hf.shards.quantizers.calibrated.error_feedback.BLOCK_COLUMNS"
    results = []
    for block in (1, 7, 1000):
        monkeypatch.setattr(module, block)
        results.append(feedback_codes(weights, scales[..., None], codebooks, {2: moment}, EQUAL, none(weights)))
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[2])


def test_feedback_counts_outliers_as_exact() -> None:
    weights, scales, codebooks, inputs, moment = correlated_problem()
    weights[:, ::5, ::7] *= 8
    is_outlier = none(weights)
    is_outlier[:, ::5, ::7] = True
    errors = []
    for known in (is_outlier, none(weights)):
        codes = feedback_codes(weights, scales[..., None], codebooks, {2: moment}, EQUAL, known)
        coded = look_up(codebooks[2], codes >> (PLANES - 2)) * scales[..., None]
        errors.append(output_error(weights, torch.where(is_outlier, weights, coded), inputs))
    assert errors[0] < 0.5 * errors[1]


def test_outliers_are_the_weights_that_contribute_most_to_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sti_hf.shards.quantizers.calibrated.outliers.OUTLIER_SHARE", 0.01)
    weights, _, _, inputs, moment = correlated_problem()
    found = find_outliers(weights, moment)
    for group, is_outlier in zip(weights, found):
        contribution = torch.stack([(row * inputs).square().sum(0) for row in group])
        assert is_outlier.sum() == round(0.01 * group.numel())
        assert contribution[is_outlier].min() > contribution[~is_outlier].max()


def test_sparse_weights_add_their_product_in_value_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 5, generator=generator) * (torch.rand(7, 5, generator=generator) < 0.2)
    x = torch.randn(2, 3, 5, generator=generator, requires_grad=True)
    output = torch.randn(2, 3, 7, generator=generator, requires_grad=True)
    results = []
    for result in (SparseWeights.of(weight).add_product(output, x), output + x @ weight.t()):
        results.append((result, *torch.autograd.grad(result.sin().sum(), (x, output))))
    assert all(torch.allclose(value, expected, atol=1e-6) for value, expected in zip(*results))


def test_inputs_without_correlation_get_no_feedback() -> None:
    weights, scales, codebooks, _, _ = correlated_problem()
    moments = {2: torch.eye(weights.shape[-1])[None]}
    codes = feedback_codes(weights, scales[..., None], codebooks, moments, EQUAL, none(weights))
    targets = (weights / scales[..., None]).flatten(1).expand(len(EQUAL), -1, -1)
    assert torch.equal(codes.flatten(1).long(), CodeSearch(codebooks, EQUAL, list(EQUAL))(targets))


@pytest.mark.parametrize("by_inputs", [False, True])
def test_least_squares_are_at_their_minimum(by_inputs: bool) -> None:
    # Moving any fitted value to either side raises the output error, but for the small pull to the present values.
    weights, _, codebooks, inputs, moment = correlated_problem()
    codes = nearest(weights)[0] >> 4
    width = weights.shape[2] if by_inputs else weights.shape[1]
    scales = 0.5 + torch.rand(2, width, generator=torch.Generator().manual_seed(1))
    shaped = scales[:, None] if by_inputs else scales[..., None]
    codebook = fit_codebook(weights, codes, shaped, codebooks[2], moment)
    fit = fit_scales_of_inputs if by_inputs else fit_scales_of_outputs
    moments = moment.expand(2, -1, -1)
    fitted = fit(weights, look_up(codebook, codes), scales, moments)

    def error(codebook: Tensor, scales: Tensor) -> float:
        shaped = scales[:, None] if by_inputs else scales[..., None]
        return output_error(weights, look_up(codebook, codes) * shaped, inputs)

    assert error(codebook, fitted) < error(codebook, scales) < error(codebooks[2], scales)
    for value in range(4):
        for step in (0.97, 1.03):
            other = codebook.clone()
            other[:, value] *= step
            assert error(other, scales) > error(codebook, scales)


def test_moments_are_those_of_the_linears_inputs_without_padding() -> None:
    model = tiny_model(BertForSequenceClassification)
    architecture = get_architecture(model.config)
    grid = architecture.grid(model.config)
    data = batches(model, 2)
    calibration_pass = CalibrationPass(model, architecture, grid, data, ["full"], Scratch())
    calibration_pass.advance(0, "full")
    moments = calibration_pass.input_moments(1, "full")
    module = model.bert.encoder.layer[1].output.dense
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    for batch in data:
        model(**batch)
    handle.remove()
    tokens = torch.cat([states[batch["attention_mask"] == 1] for states, batch in zip(seen, data)])
    blocks = tokens.view(len(tokens), grid.slices, -1)
    expected = torch.einsum("tmi,tmj->mij", blocks, blocks)
    assert torch.allclose(moments["down"], expected, rtol=1e-3, atol=1e-3)
    assert moments["attention"].shape == (1, grid.row_length, grid.row_length)


def test_a_slices_fit_does_not_depend_on_the_weights_of_another() -> None:
    model = tiny_model(BertForSequenceClassification)
    architecture = get_architecture(model.config)
    shards, grid = layer_shards(model, 0)
    calibration_pass = CalibrationPass(model, architecture, grid, batches(model), [2], Scratch())
    moments = dict.fromkeys((2, 3, 4), calibration_pass.input_moments(0, 2))
    changed = shards.clone()
    changed[1] = changed[1].roll(1, 0) * 1.5
    first = fit_layer(shards, grid, architecture.matrices, moments)
    second = fit_layer(changed, grid, architecture.matrices, moments)
    assert torch.equal(first.codes[0], second.codes[0])
    assert not torch.equal(first.codes[1], second.codes[1])
    for bits in EQUAL:
        assert torch.equal(first.codebooks[bits][0], second.codebooks[bits][0])
        assert torch.equal(first.scales[bits][0], second.scales[bits][0])

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from transformers import (
    BertForSequenceClassification,
    DistilBertModel,
    ElectraForTokenClassification,
    MPNetForSequenceClassification,
    PreTrainedModel,
)

from sti_hf.architectures import Grid, get_architecture
from sti_hf.shards.layout import FIDELITIES, PLANES
from sti_hf.shards.partition import join_layer, split_layer
from sti_hf.shards.quantizers import Quantizer, get_quantizer
from sti_hf.shards.quantizers.calibrated import CalibratedQuantizer, calibrate
from sti_hf.shards.quantizers.calibrated.error_feedback import best_codes, feedback_codes
from sti_hf.shards.quantizers.calibrated.forward_passes import CalibrationPass
from sti_hf.shards.quantizers.calibrated.frozen_linear import frozen_linear
from sti_hf.shards.quantizers.calibrated.least_squares import (
    fit_codebook,
    fit_scales_of_inputs,
    fit_scales_of_outputs,
    look_up,
)
from sti_hf.shards.quantizers.calibrated.nested_fit import fit_layer
from sti_hf.shards.quantizers.calibrated.outliers import SparseWeights, find_outliers
from sti_hf.shards.quantizers.calibrated.recomputation import recomputed
from sti_hf.shards.quantizers.calibrated.scale_tuning import ROUNDS, fidelity_rounds
from sti_hf.shards.quantizers.calibrated.scratch import Scratch
from sti_hf.shards.quantizers.lloyd import quantize_matrix
from tests.models import tiny_inputs, tiny_model

EQUAL = dict.fromkeys(range(2, PLANES + 1), 1.0)


def batches(model: PreTrainedModel, count: int = 4) -> list[dict[str, Tensor]]:
    return [tiny_inputs(model, batch=8, seed=seed) for seed in range(count)]


def layer_shards(model: PreTrainedModel, layer: int, order: list[int] | None = None) -> tuple[Tensor, Grid]:
    architecture = get_architecture(model.config)
    grid = architecture.grid(model.config)
    module = model.base_model.get_submodule(architecture.layers)[layer]
    weights = {matrix.name: module.get_submodule(matrix.module).weight for matrix in architecture.matrices}
    return split_layer(weights, architecture.matrices, grid, order or list(range(grid.slices))), grid


def correlated_problem(rows: int = 24, columns: int = 40) -> tuple[Tensor, Tensor, dict[int, Tensor], Tensor, Tensor]:
    """Weights, scales, codebooks, inputs with a few strong directions, and their second moments."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, rows, columns, generator=generator)
    inputs = torch.randn(500, 6, generator=generator) @ torch.randn(6, columns, generator=generator)
    inputs += 0.3 * torch.randn(inputs.shape, generator=generator)
    _, scales, codebooks = nearest(weights)
    return weights, scales, codebooks, inputs, (inputs.t() @ inputs)[None]


def nearest(weights: Tensor) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Codes, scales and codebooks without calibration, and without outliers."""
    return quantize_matrix(weights, weights.square().mean(-1).sqrt(), none(weights))


def none(weights: Tensor) -> Tensor:
    return torch.zeros_like(weights, dtype=torch.bool)


def output_error(weights: Tensor, approximation: Tensor, inputs: Tensor) -> float:
    return float(((weights - approximation) @ inputs.t()).square().mean() / (weights @ inputs.t()).square().mean())


def all_codes(targets: Mapping[int, Tensor], codebooks: Mapping[int, Tensor], group: int, row: int) -> list[float]:
    return [
        sum(
            float((targets[bits][group, row] - codebooks[bits][group, code >> (PLANES - bits)]) ** 2) for bits in EQUAL
        )
        for code in range(2**PLANES)
    ]


def test_best_codes_are_those_of_a_search_over_all_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    codebooks = {bits: torch.randn(3, 2**bits, generator=generator) for bits in EQUAL}
    targets = {bits: torch.randn(3, 5, generator=generator) for bits in EQUAL}
    codes = best_codes(targets, codebooks, EQUAL)
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
    targets = dict.fromkeys(EQUAL, (weights / scales[..., None]).flatten(1))
    assert torch.equal(codes.flatten(1).long(), best_codes(targets, codebooks, EQUAL))


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


def quantized_outputs(
    model: PreTrainedModel, quantizer: Quantizer, bits: int | list[int], inputs: dict[str, Tensor]
) -> Tensor:
    """Last hidden states of the tokens, of a model of which every shard, or the i-th slices, are at that fidelity; the
    model is left as it was.
    """
    architecture = get_architecture(model.config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for layer, module in enumerate(model.base_model.get_submodule(architecture.layers)):
        shards, grid = layer_shards(model, layer)
        quantized = quantizer.quantize_layer(layer, shards, grid)
        fidelities = [bits] * grid.slices if isinstance(bits, int) else bits
        slices = torch.stack([quantized.dequantize(k)[index] for index, k in enumerate(fidelities)])
        weights = join_layer(slices, architecture.matrices, grid)
        for matrix in architecture.matrices:
            module.get_submodule(matrix.module).weight.data.copy_(weights[matrix.name])
    with torch.no_grad():
        outputs = model.base_model(**inputs)[0][inputs["attention_mask"] == 1]
    model.load_state_dict(before)
    return outputs


MODELS = [
    BertForSequenceClassification,
    MPNetForSequenceClassification,
    ElectraForTokenClassification,
    DistilBertModel,
]


@pytest.mark.parametrize("model_class", MODELS)
def test_it_beats_lloyd_on_texts_it_has_not_seen(model_class: type[PreTrainedModel]) -> None:
    model = tiny_model(model_class)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    quantizer = calibrate(model, batches(model), tuning_steps=64)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in model.modules()
    )
    unseen = tiny_inputs(model, batch=64, seed=99)
    with torch.no_grad():
        full = model.base_model(**unseen)[0][unseen["attention_mask"] == 1]
    for bits in (2, 3, 4):
        errors = [
            float((quantized_outputs(model, other, bits, unseen) - full).square().mean())
            for other in (quantizer, get_quantizer("lloyd"))
        ]
        assert errors[0] < errors[1]


def test_tuning_the_scales_lowers_the_error_on_its_texts_also_of_mixed_fidelities() -> None:
    model = tiny_model(BertForSequenceClassification)
    texts = batches(model)
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randint(2, PLANES + 1, (12, 4), generator=generator)
    mixed[torch.rand(mixed.shape, generator=generator) < 0.5] = 2
    fitted, tuned = (calibrate(model, texts, tuning_steps=steps) for steps in (0, 64))
    with torch.no_grad():
        full = model.base_model(**texts[0])[0][texts[0]["attention_mask"] == 1]

    def error(quantizer: Quantizer, bits: int | list[int]) -> float:
        return float((quantized_outputs(model, quantizer, bits, texts[0]) - full).square().mean())

    assert error(tuned, 2) < 0.8 * error(fitted, 2)
    assert sum(error(tuned, bits) for bits in mixed.tolist()) < 0.95 * sum(
        error(fitted, bits) for bits in mixed.tolist()
    )


def test_rounds_are_uniform_and_mixed_with_higher_fidelities_in_turn() -> None:
    rounds = list(itertools.islice(fidelity_rounds((50, 12), torch.Generator().manual_seed(0)), 4 * len(ROUNDS)))
    assert [FIDELITIES[tuned] for tuned, _ in rounds] == 2 * [bits for bits in ROUNDS for _ in range(2)]
    for tuned, uniform in rounds[::2]:
        assert (uniform == tuned).all()
    for tuned, mixed in rounds[1::2]:
        assert 0.4 < (mixed == tuned).float().mean() < 0.8
        assert set(mixed.unique().tolist()) == set(range(tuned, len(FIDELITIES)))


@pytest.fixture(scope="module")
def calibrated() -> tuple[PreTrainedModel, CalibratedQuantizer]:
    model = tiny_model(BertForSequenceClassification)
    return model, calibrate(model, batches(model), tuning_steps=16)


def test_the_same_seed_gives_the_same_record(calibrated: tuple[PreTrainedModel, CalibratedQuantizer]) -> None:
    model, quantizer = calibrated
    shards, grid = layer_shards(model, 2)
    first = quantizer.quantize_layer(2, shards, grid)
    second = calibrate(model, batches(model), tuning_steps=16).quantize_layer(2, shards, grid)
    assert torch.equal(first.codes, second.codes)
    assert all(torch.equal(first.dequantize(bits), second.dequantize(bits)) for bits in EQUAL)


def test_error_falls_with_every_bit(calibrated: tuple[PreTrainedModel, CalibratedQuantizer]) -> None:
    model, quantizer = calibrated
    shards, grid = layer_shards(model, 0)
    layer = quantizer.quantize_layer(0, shards, grid)
    errors = [float((layer.dequantize(bits) - shards).square().mean()) for bits in EQUAL]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]
    assert int(layer.codes.max()) < 2**PLANES


def test_outliers_are_exact_at_every_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sti_hf.shards.quantizers.calibrated.outliers.OUTLIER_SHARE", 0.02)
    model = tiny_model(BertForSequenceClassification)
    weight = model.bert.encoder.layer[1].output.dense.weight
    weight.data[3, 5] = 9 * weight.abs().max().detach()
    shards, grid = layer_shards(model, 1)
    layer = calibrate(model, batches(model, 1), tuning_steps=4).quantize_layer(1, shards, grid)
    index = (shards == weight[3, 5]).nonzero()[0]
    assert all(layer.dequantize(bits)[tuple(index)] == weight[3, 5] for bits in EQUAL)


def test_slices_may_come_in_any_order(calibrated: tuple[PreTrainedModel, CalibratedQuantizer]) -> None:
    model, quantizer = calibrated
    shards, grid = layer_shards(model, 1)
    order = [2, 0, 3, 1]
    straight = quantizer.quantize_layer(1, shards, grid).dequantize(3)
    permuted = quantizer.quantize_layer(1, layer_shards(model, 1, order)[0], grid).dequantize(3)
    assert torch.equal(permuted, straight[order])


def test_progress_adds_up_to_all_the_work() -> None:
    model = tiny_model(BertForSequenceClassification)
    calls: list[tuple[int, int]] = []
    calibrate(model, batches(model, 1), tuning_steps=9, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) > 9
    assert {sum(done for done, _ in calls)} == {total for _, total in calls}


def test_bad_input_gets_a_sentence(calibrated: tuple[PreTrainedModel, CalibratedQuantizer]) -> None:
    model, quantizer = calibrated
    shards, grid = layer_shards(model, 0)
    with pytest.raises(ValueError, match="no calibration text"):
        calibrate(model, [])
    with pytest.raises(ValueError, match="Layer 1 is not of the model"):
        quantizer.quantize_layer(1, shards, grid)
    with pytest.raises(ValueError, match="needs the model in float32"):
        calibrate(tiny_model(BertForSequenceClassification).bfloat16(), batches(model))


def test_a_failure_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(BertForSequenceClassification)
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, batches(model), progress=fail)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_linear_is_linear_in_value_and_gradient(with_bias: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 16, generator=generator).to(dtype)
    bias = torch.randn(24, generator=generator) if with_bias else None
    x = torch.randn(3, 5, 16, generator=generator)
    scale = torch.rand(24, generator=generator)
    gradient = torch.randn(3, 5, 24, generator=generator)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    for used in (None, scale):
        mine = [tensor.clone().requires_grad_() for tensor in (x, scale)]
        other = [tensor.clone().requires_grad_() for tensor in (x, scale)]
        output = frozen_linear(mine[0], weight, bias, None if used is None else mine[1])
        product = torch.nn.functional.linear(other[0], weight.float())
        expected = (product if used is None else product * other[1]) + (0 if bias is None else bias)
        assert output.dtype == torch.float32
        assert torch.allclose(output, expected, atol=tolerance)
        output.backward(gradient)
        expected.backward(gradient)
        assert torch.allclose(mine[0].grad, other[0].grad, atol=tolerance)
        if used is not None:
            assert torch.allclose(mine[1].grad, other[1].grad, atol=10 * tolerance)


def test_recomputed_layers_give_the_same_gradients_and_keep_their_inputs_alone() -> None:
    model = tiny_model(BertForSequenceClassification).eval()
    layers = list(model.bert.encoder.layer)
    inputs = tiny_inputs(model, batch=8)
    results, kept = [], []

    def count(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for chosen in ([], layers):
        kept.append(0)
        model.zero_grad()
        with recomputed(chosen):
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                loss = model(**inputs).logits.square().sum()
            loss.backward()
        results.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert kept[1] < 0.5 * kept[0]
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
    assert not any("forward" in vars(layer) for layer in layers)


def test_scratch_replaces_a_group_and_leaves_loaded_tensors_alone() -> None:
    scratch = Scratch()
    scratch.save("group", {"a": torch.arange(5000)})
    loaded = scratch.load("group")["a"]
    scratch.save("group", {"a": torch.zeros(3)})
    assert torch.equal(loaded, torch.arange(5000))
    assert torch.equal(scratch.load("group")["a"], torch.zeros(3))

from __future__ import annotations

import itertools

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

from sti_hf.model import get_architecture
from sti_hf.shards.layout import FIDELITIES, PLANES
from sti_hf.shards.partition import join_layer
from sti_hf.shards.quantizers import Quantizer, get_quantizer
from sti_hf.shards.quantizers.calibrated import CalibratedQuantizer, calibrate
from sti_hf.shards.quantizers.calibrated.frozen_linear import frozen_linear
from sti_hf.shards.quantizers.calibrated.recomputation import recomputed
from sti_hf.shards.quantizers.calibrated.scale_tuning import ENCODER_TUNING, fidelity_rounds
from sti_hf.shards.quantizers.calibrated.scratch import Scratch
from tests.models import tiny_inputs, tiny_model
from tests.shards.calibration import (
    EQUAL,
    batches,
    layer_shards,
)


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
    given = ENCODER_TUNING.rounds
    drawn = fidelity_rounds((50, 12), torch.Generator().manual_seed(0), given)
    rounds = list(itertools.islice(drawn, 4 * len(given)))
    assert [FIDELITIES[tuned] for tuned, _ in rounds] == 2 * [bits for bits in given for _ in range(2)]
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

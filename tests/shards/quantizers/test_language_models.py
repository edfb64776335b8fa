"""The calibrated quantizer of language models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BertForMaskedLM,
    Gemma2ForCausalLM,
    GPT2LMHeadModel,
    GraniteForCausalLM,
    LlamaForCausalLM,
    LlamaModel,
    OPTForCausalLM,
    PreTrainedModel,
)

from sti_hf.model import get_architecture
from sti_hf.model.fused import in_parts
from sti_hf.shards.partition import join_layer, split_layer
from sti_hf.shards.quantizers import Quantizer, get_quantizer
from sti_hf.shards.quantizers.calibrated import calibrate
from sti_hf.shards.quantizers.calibrated.fisher_moments import save_fisher_moments
from sti_hf.shards.quantizers.calibrated.language_head import LanguageHead, predicts_next_token
from sti_hf.shards.quantizers.calibrated.scratch import Scratch
from tests.models import tiny_inputs, tiny_model
from tests.shards.calibration import batches


def divergence(model: PreTrainedModel, quantizer: Quantizer, bits: int, inputs: dict[str, Tensor]) -> float:
    """Of the next tokens that a model with all its layers at that fidelity predicts; the model is left as it was."""
    architecture = get_architecture(model.config)
    grid = architecture.grid(model.config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mask = inputs["attention_mask"] == 1
    with torch.no_grad(), in_parts(model, architecture):
        full = model(**inputs).logits[mask].log_softmax(-1)
        for layer, linears in enumerate(architecture.linears(model)):
            weights = {name: linear.weight for name, linear in linears.items()}
            shards = split_layer(weights, architecture.matrices, grid, range(grid.slices))
            values = quantizer.quantize_layer(layer, shards, grid).dequantize(bits)
            for name, weight in join_layer(values, architecture.matrices, grid).items():
                linears[name].weight.copy_(weight)
        logits = model(**inputs).logits[mask].log_softmax(-1)
    model.load_state_dict(before)
    return float(F.kl_div(logits, full, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("model_class", [LlamaForCausalLM, GPT2LMHeadModel])
def test_it_predicts_tokens_of_unseen_texts_better_than_lloyd(model_class: type[PreTrainedModel]) -> None:
    model = tiny_model(model_class)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    quantizer = calibrate(model, batches(model), tuning_steps=48)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in model.modules()
    )
    unseen = tiny_inputs(model, batch=32, seed=99)
    for bits in (2, 3, 4):
        assert divergence(model, quantizer, bits, unseen) < divergence(model, get_quantizer("lloyd"), bits, unseen)


def test_tuning_brings_the_predicted_tokens_nearer() -> None:
    model = tiny_model(LlamaForCausalLM)
    texts = batches(model)
    fitted, tuned = (calibrate(model, texts, tuning_steps=steps) for steps in (0, 64))
    for bits in (2, 3):
        assert divergence(model, tuned, bits, texts[0]) < 0.95 * divergence(model, fitted, bits, texts[0])


def test_progress_adds_up_to_all_the_work() -> None:
    model = tiny_model(LlamaForCausalLM)
    calls: list[tuple[int, int]] = []
    calibrate(model, batches(model, 1), tuning_steps=5, progress=lambda done, total: calls.append((done, total)))
    assert {sum(done for done, _ in calls)} == {total for _, total in calls}


@pytest.mark.parametrize(
    "model_class", [LlamaForCausalLM, Gemma2ForCausalLM, GraniteForCausalLM, GPT2LMHeadModel, OPTForCausalLM]
)
def test_the_heads_logits_are_the_models(model_class: type[PreTrainedModel]) -> None:
    model = tiny_model(model_class)
    inputs = tiny_inputs(model)
    head = LanguageHead.of(model, get_architecture(model.config))
    assert head is not None
    with torch.no_grad():
        assert torch.allclose(head.logits(head.states(inputs)), model(**inputs).logits, atol=1e-5)


@pytest.mark.parametrize("model_class", [LlamaModel, BertForMaskedLM])
def test_what_predicts_no_next_token_has_no_head(model_class: type[PreTrainedModel]) -> None:
    model = tiny_model(model_class)
    assert not predicts_next_token(model)
    assert LanguageHead.of(model, get_architecture(model.config)) is None


def test_fisher_moments_are_those_of_a_loop_over_tokens() -> None:
    model = tiny_model(LlamaForCausalLM)
    architecture = get_architecture(model.config)
    grid = architecture.grid(model.config)
    head = LanguageHead.of(model, architecture)
    assert head is not None
    inputs = tiny_inputs(model)
    scratch = Scratch()
    save_fisher_moments(model, architecture, grid, head, [inputs], scratch, 7, lambda: None)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name in ("q", "k", "v", "down"):
        module = architecture.linears(model)[1][name]
        module.register_forward_hook(lambda _, args, output, name=name: seen.update({name: (args[0], output)}))
    mask = inputs["attention_mask"] == 1
    logits = model(**inputs).logits[mask]
    generator = torch.Generator().manual_seed(7)
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    gradients = torch.autograd.grad(
        F.cross_entropy(logits, labels, reduction="sum"), [each for _, each in seen.values()]
    )
    tokens = {name: inputs[mask].detach() for name, (inputs, _) in seen.items()}
    squares = {name: gradient[mask].square() for name, gradient in zip(seen, gradients)}
    saved = scratch.load("moments.1")
    for index in range(grid.slices):
        attention = torch.zeros(grid.row_length, grid.row_length)
        for name in ("q", "k", "v"):
            of_slice = squares[name].unflatten(1, (grid.slices, -1))[:, index].mean(1)
            mean = squares[name].mean()
            for token, weight in zip(tokens[name], of_slice):
                attention += torch.outer(token, token) * weight / mean
        assert torch.allclose(saved["attention"][index], attention, rtol=1e-3, atol=1e-4)
        down = torch.zeros(saved["down"].shape[1:])
        for token, weight in zip(tokens["down"].unflatten(1, (grid.slices, -1))[:, index], squares["down"].mean(1)):
            down += torch.outer(token, token) * weight / squares["down"].mean()
        assert torch.allclose(saved["down"][index], down, rtol=1e-3, atol=1e-4)

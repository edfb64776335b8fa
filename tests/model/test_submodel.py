"""A submodel made of slices runs in the stock forward, as the model without the other heads, neurons and layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma3TextModel

from tests.model.submodels import cut_down, random_orders, silence, widths_of
from tests.models import KEY_VALUE_HEADS, LAYERS, TASK_HEADS, tiny_inputs, tiny_model

CASES = [
    pytest.param(model_class, attention, id=f"{model_class.__name__}-{attention}")
    for model_classes in TASK_HEADS.values()
    for model_class in model_classes
    for attention in ("eager", "sdpa")
    if attention == "eager" or model_class._supports_sdpa
]
BASE_MODELS = [
    pytest.param(model_class, id=model_class.__name__)
    for model_classes in TASK_HEADS.values()
    for model_class in model_classes
    if model_class.__name__.endswith("Model") and "LMHead" not in model_class.__name__
]
CAUSAL_MODELS = [
    pytest.param(model_class, id=model_class.__name__)
    for model_classes in TASK_HEADS.values()
    for model_class in model_classes
    if model_class.can_generate()
]


def narrower(model: Any) -> int:
    """The largest width of a submodel below the whole; M where there is none."""
    return widths_of(model)[-2:][0]


def run(model: Any, **options: Any) -> list[Tensor]:
    """All tensors of the model's output on a padded batch."""
    with torch.no_grad():
        output = model(**tiny_inputs(model), output_hidden_states=True, use_cache=False, **options)
    return [*output.hidden_states, *(value for value in output.values() if isinstance(value, Tensor))]


def largest_difference(left: list[Tensor], right: list[Tensor]) -> float:
    assert [tensor.shape for tensor in left] == [tensor.shape for tensor in right]
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(("model_class", "attention"), CASES)
def test_submodel_is_the_model_without_the_rest(model_class: Any, attention: str) -> None:
    model = tiny_model(model_class, attn_implementation=attention)
    assert model.config._attn_implementation == attention
    orders = random_orders(model)
    widths = widths_of(model)
    for layers, slices in ((LAYERS, widths[(len(widths) - 1) // 2]), (2, narrower(model)), (1, widths[0])):
        submodel, silenced = cut_down(model, layers, slices, orders), silence(model, layers, slices, orders)
        assert largest_difference(run(submodel), run(silenced)) < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_text_encoder_of_gemma_sees_both_ways(attention: str) -> None:
    """EmbeddingGemma: the family's other models here do not."""
    model = tiny_model(Gemma3TextModel, attn_implementation=attention, use_bidirectional_attention=True)
    orders = random_orders(model)
    submodel, silenced = cut_down(model, 2, 1, orders), silence(model, 2, 1, orders)
    assert largest_difference(run(submodel), run(silenced)) < 1e-5
    assert largest_difference(run(cut_down(model, LAYERS, widths_of(model)[-1], orders)), run(model)) < 1e-5
    one_way = tiny_model(Gemma3TextModel, attn_implementation=attention)
    assert largest_difference(run(one_way), run(model)) > 1e-2


@pytest.mark.parametrize("model_class", BASE_MODELS)
def test_every_slice_and_layer_matters(model_class: Any) -> None:
    model = tiny_model(model_class)
    orders = random_orders(model)
    every = run(model)
    *fewer, every_slice = widths_of(model)
    for slices in fewer:
        assert largest_difference(run(cut_down(model, LAYERS, slices, orders)), every) > 1e-2
    without_last = run(cut_down(model, LAYERS - 1, every_slice, orders))
    assert float((without_last[-1] - every[-1]).abs().max()) > 1e-2


@pytest.mark.parametrize(("model_class", "attention"), CASES)
def test_permuted_full_grid_is_the_model(model_class: Any, attention: str) -> None:
    model = tiny_model(model_class, attn_implementation=attention)
    permuted = cut_down(model, LAYERS, widths_of(model)[-1], random_orders(model))
    assert largest_difference(run(permuted), run(model)) < 1e-5


@pytest.mark.parametrize("model_class", BASE_MODELS)
def test_attentions_are_those_of_the_active_heads(model_class: Any) -> None:
    model = tiny_model(model_class, attn_implementation="eager")
    orders, slices = random_orders(model), narrower(model)
    submodel, silenced = cut_down(model, 2, slices, orders), silence(model, 2, slices, orders)
    with torch.no_grad():
        active = submodel(**tiny_inputs(model), output_attentions=True).attentions
        every = silenced(**tiny_inputs(model), output_attentions=True).attentions
    assert len(active) == 2
    for order, left, right in zip(orders, active, every, strict=False):
        if slices == len(order):
            torch.testing.assert_close(left, right, atol=1e-5, rtol=0)
            continue
        of_slices = right.unflatten(1, (len(order), -1))[:, order[:slices]].flatten(1, 2)
        torch.testing.assert_close(left, of_slices, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_class", CAUSAL_MODELS)
def test_generates_with_a_cache_of_the_active_heads(model_class: Any) -> None:
    model = tiny_model(model_class)
    orders, slices = random_orders(model), narrower(model)
    submodel, silenced = cut_down(model, 2, slices, orders), silence(model, 2, slices, orders)
    inputs = tiny_inputs(model, padded=False)
    options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    left, right = submodel.generate(**inputs, **options), silenced.generate(**inputs, **options)
    heads = slices if widths_of(model)[0] == 1 else KEY_VALUE_HEADS[model.config.model_type]
    assert left.past_key_values.layers[0].keys.shape[1] == heads
    assert torch.equal(left.sequences, right.sequences)
    torch.testing.assert_close(left.logits, right.logits, atol=1e-5, rtol=0)

"""Parts of a model called by themselves: right, or one sentence."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sti_hf.errors import UnsupportedUseError
from sti_hf.model import get_architecture
from tests.models import FAMILIES, head_of, tiny_inputs, tiny_model
from tests.runtime.sessions import logits_of, plan_of, running, store_of

STATES = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))


def stack_of(model: PreTrainedModel) -> Any:
    """The module that has the layers."""
    return model.base_model.get_submodule(get_architecture(model.config).layers.rpartition(".")[0])


def call_stack(model: PreTrainedModel) -> Tensor:
    """What the layers make of `STATES`, called without the model around them."""
    stack = stack_of(model)
    if stack is model.base_model:
        pytest.skip("the base model has the layers itself")
    masks = {"distilbert": {"attention_mask": None}, "deberta-v2": {"attention_mask": torch.ones(2, 7)}}
    takes = inspect.signature(type(stack).forward).parameters
    states = "hidden_states" if "hidden_states" in takes else "inputs_embeds"
    output = stack(**{states: STATES}, **masks.get(model.config.model_type, {}))
    return output[0]


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    """A stock model and the same from its store, at full fidelity with nothing preloaded."""
    stock = tiny_model(head_of(request.param))
    store = store_of(stock, tmp_path / "store")
    model = running(store, plan_of(store, np.full((store.grid.layers, store.grid.slices), 32)))
    yield stock, model
    model.sti.close()


def test_the_stack_answers_wherever_it_is_called_from(pair: Any) -> None:
    stock, model = pair
    inputs = tiny_inputs(stock)
    with torch.no_grad():
        whole, part = logits_of(stock(**inputs)), call_stack(stock)
    for _ in range(2):
        assert torch.allclose(call_stack(model), part, atol=1e-5)
        assert torch.allclose(logits_of(model(**inputs)), whole, atol=1e-5)
        assert torch.allclose(logits_of(model(**inputs)), whole, atol=1e-5)
        assert torch.allclose(call_stack(model), part, atol=1e-5)


def test_the_stack_answers_in_a_module_of_the_user(pair: Any) -> None:
    stock, model = pair

    class Own(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

        def forward(self, base: PreTrainedModel) -> Tensor:
            return call_stack(base) + 1

    with torch.no_grad():
        expected = call_stack(stock) + 1
    assert torch.allclose(Own(stack_of(model)).eval()(model), expected, atol=1e-5)


def test_a_layer_by_itself_is_refused_in_one_sentence(pair: Any) -> None:
    stock, model = pair
    layers = model.base_model.get_submodule(get_architecture(model.config).layers)
    assert len(layers) == len(list(layers)) == 3
    inputs = tiny_inputs(stock)
    for call in (
        lambda: layers[1](STATES),
        lambda: [layer(STATES) for layer in layers[:2]],
        lambda: layers[0].forward(STATES),
        lambda: get_architecture(model.config).linears(model)[0]["q"](STATES),
    ):
        with pytest.raises(UnsupportedUseError, match="call the model") as refused:
            call()
        assert "\n" not in str(refused.value)
        with torch.no_grad():
            assert torch.allclose(logits_of(model(**inputs)), logits_of(stock(**inputs)), atol=1e-5)


def test_layers_that_the_user_took_out_are_noticed(pair: Any) -> None:
    stock, model = pair
    stack, name = stack_of(model), get_architecture(model.config).layers.rpartition(".")[2]
    layers = getattr(stack, name)
    inputs = tiny_inputs(stock)
    setattr(stack, name, layers[:2])
    with pytest.raises(UnsupportedUseError, match="layers of this model were changed"):
        model(**inputs)
    setattr(stack, name, layers)
    del layers[1]
    with pytest.raises(UnsupportedUseError, match="layers of this model were changed"):
        model(**inputs)


def test_a_layer_that_is_called_out_of_turn_is_refused(pair: Any) -> None:
    stock, model = pair
    layers = list(model.base_model.get_submodule(get_architecture(model.config).layers))
    inputs = tiny_inputs(stock)
    handle = layers[1].register_forward_pre_hook(lambda module, args: layers[2](STATES) and None)
    with pytest.raises(UnsupportedUseError, match="out of its turn"):
        model(**inputs)
    handle.remove()
    with torch.no_grad():
        assert torch.allclose(logits_of(model(**inputs)), logits_of(stock(**inputs)), atol=1e-5)


def test_a_model_inside_its_own_forward_is_refused(pair: Any) -> None:
    stock, model = pair
    layers = list(model.base_model.get_submodule(get_architecture(model.config).layers))
    inputs = tiny_inputs(stock)
    for call in (lambda: model(**inputs), lambda: model.sti.replan(target_latency=1)):
        handle = layers[1].register_forward_pre_hook(lambda module, args, call=call: call() and None)
        with pytest.raises(UnsupportedUseError):
            model(**inputs)
        handle.remove()
    with torch.no_grad():
        assert torch.allclose(logits_of(model(**inputs)), logits_of(stock(**inputs)), atol=1e-5)

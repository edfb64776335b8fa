from __future__ import annotations

import copy

import pytest
import torch
from transformers import ModernBertForSequenceClassification, ModernBertModel

from sti_hf.model import get_architecture
from sti_hf.model.fused import FusedLinear, in_parts, join_fused, split_fused
from tests.models import tiny_inputs, tiny_model

ARCHITECTURE = get_architecture(tiny_model(ModernBertModel).config)


@pytest.mark.parametrize("bias", [False, True])
def test_in_parts_the_model_is_the_same(bias: bool) -> None:
    model = tiny_model(ModernBertForSequenceClassification, attention_bias=bias, mlp_bias=bias)
    inputs, state = tiny_inputs(model), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(**inputs).logits
        with in_parts(model, ARCHITECTURE):
            assert isinstance(model.model.layers[0].attn.Wqkv, FusedLinear)
            assert torch.allclose(model(**inputs).logits, expected, atol=1e-6)
        assert torch.equal(model(**inputs).logits, expected)
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)


def test_nothing_is_copied() -> None:
    model = tiny_model(ModernBertModel)
    weight = model.layers[1].attn.Wqkv.weight
    split_fused(model, ARCHITECTURE)
    key = model.layers[1].attn.Wqkv.k.weight
    assert torch.equal(key, weight[32:64])
    assert key.data_ptr() == weight[32:].data_ptr()
    split_fused(model, ARCHITECTURE)  # is that already
    join_fused(model, ARCHITECTURE)
    assert model.layers[1].attn.Wqkv.weight.data_ptr() == weight.data_ptr()


def test_parts_that_were_changed_are_joined_as_they_are() -> None:
    model = tiny_model(ModernBertModel)
    split_fused(model, ARCHITECTURE)
    parts = model.layers[0].mlp.Wi
    gate, up = torch.randn_like(parts.gate.weight), torch.randn_like(parts.up.weight)
    parts.gate.weight, parts.up.weight = torch.nn.Parameter(gate), torch.nn.Parameter(up)
    join_fused(model, ARCHITECTURE)
    assert torch.equal(model.layers[0].mlp.Wi.weight, torch.cat([gate, up]))


def test_weights_that_have_no_memory_are_joined() -> None:
    model = tiny_model(ModernBertModel).to("meta")
    split_fused(model, ARCHITECTURE)
    join_fused(model, ARCHITECTURE)
    assert model.layers[0].attn.Wqkv.weight.shape == (96, 32)

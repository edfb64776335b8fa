"""What MPNet needs beyond names: a width that follows the slices, and a position bias that follows the heads."""

from __future__ import annotations

import pytest
import torch
from transformers import MPNetModel

from sti_hf.model import get_architecture
from tests.models import HEADS, HIDDEN, tiny_config, tiny_model

ARCHITECTURE = get_architecture(tiny_config("mpnet"))


def test_prepare_layer_is_reversible() -> None:
    layer = tiny_model(MPNetModel).encoder.layer[0]
    before = [dict(module.__dict__) for module in layer.modules()]
    ARCHITECTURE.prepare_layer(layer, 1)
    assert layer.attention.attn.all_head_size == HIDDEN // HEADS
    ARCHITECTURE.prepare_layer(layer, 3)
    ARCHITECTURE.prepare_layer(layer, HEADS)
    assert [dict(module.__dict__) for module in layer.modules()] == before


@pytest.mark.parametrize("heads", [[0, 1, 2, 3], [0, 1], [2], [3, 0, 1]])
def test_position_bias_follows_the_heads(heads: list[int]) -> None:
    hidden, mask, bias = torch.rand(2, 5, HIDDEN), torch.rand(2, 1, 5, 5), torch.rand(2, HEADS, 5, 5)
    expected = torch.stack([bias[:, head] for head in heads], dim=1)

    args, kwargs = ARCHITECTURE.layer_inputs((hidden, mask, bias), {"output_attentions": True}, heads)
    assert args[0] is hidden and args[1] is mask and kwargs == {"output_attentions": True}
    assert torch.equal(args[2], expected)

    args, kwargs = ARCHITECTURE.layer_inputs((hidden, mask), {"position_bias": bias}, heads)
    assert args == (hidden, mask) and torch.equal(kwargs["position_bias"], expected)


def test_position_bias_of_all_heads_in_order_is_not_copied() -> None:
    bias = torch.rand(2, HEADS, 5, 5)
    args, _ = ARCHITECTURE.layer_inputs((None, None, bias), {}, range(HEADS))
    assert args[2].data_ptr() == bias.data_ptr() and args[2].shape == bias.shape


def test_position_bias_may_be_absent() -> None:
    assert ARCHITECTURE.layer_inputs((None, None, None), {}, [1])[0] == (None, None, None)

"""A layer computes in the compute path's dtype, and nobody outside it can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.precision import LayerPrecision
from sti_hf.shards.layout import FULL
from tests.models import DECODERS, FAMILIES, head_of, tiny_inputs, tiny_model
from tests.runtime.sessions import logits_of, plan_of, running, store_of

BFLOAT16 = ComputePath("bfloat16", "default")
LEAST = torch.finfo(torch.float32).min


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_outputs_have_the_models_dtype(model_type: str, attention: str, tmp_path: Path) -> None:
    stock = tiny_model(head_of(model_type))
    if attention == "sdpa" and not stock._supports_sdpa:
        pytest.skip(f"{model_type} has no such attention")
    store = store_of(stock, tmp_path / "store")
    model = running(store, plan_of(store, np.full((store.grid.layers, store.grid.slices), FULL)), BFLOAT16)
    model.set_attn_implementation(attention)
    inputs = tiny_inputs(stock)
    if "attention_mask" in inputs:
        inputs["attention_mask"][-1, 2:] = 0
        inputs["input_ids"][-1, 2:] = stock.config.pad_token_id  # some heads read the last token that is none
    got = model(**inputs, output_hidden_states=True)
    with torch.no_grad():
        expected = stock(**inputs)
    assert {state.dtype for state in got.hidden_states} == {torch.float32}
    assert logits_of(got).dtype == torch.float32
    difference = (logits_of(got) - logits_of(expected)).abs()
    if model_type in DECODERS and difference.dim() == 3:
        # Of a whole vocabulary. Padding sees nothing at all where a window has passed, and says anything.
        assert difference[inputs["attention_mask"] > 0].max() < 0.2
    else:
        assert difference.max() < 0.1
    model.sti.close()


def test_a_layers_operations_are_narrow(tmp_path: Path) -> None:
    stock = tiny_model(head_of("bert"))
    store = store_of(stock, tmp_path / "store")
    model = running(store, plan_of(store, np.full((store.grid.layers, store.grid.slices), FULL)), BFLOAT16)
    seen = set()
    for module in model.base_model.encoder.layer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda module, args, output: seen.add((args[0].dtype, output.dtype)))
    model(**tiny_inputs(stock))
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    model.sti.close()


def test_what_layers_share_is_converted_once() -> None:
    precision = LayerPrecision(torch.bfloat16)
    mask, bias = torch.tensor([[0.0, LEAST]]), torch.randn(1, 2, 2, 2)
    first, _ = precision.narrowed((torch.randn(1, 2, 8), mask, bias), {})
    second, _ = precision.narrowed((torch.randn(1, 2, 8), mask, bias), {})
    assert second[1] is first[1] and second[2] is first[2] and second[0] is not first[0]
    precision.forget()
    third, _ = precision.narrowed((torch.randn(1, 2, 8), mask, bias), {})
    assert third[1] is not first[1] and torch.equal(third[1], first[1])


def test_a_row_that_is_masked_from_end_to_end_has_a_softmax() -> None:
    (_, mask), _ = LayerPrecision(torch.bfloat16).narrowed((torch.randn(1, 2, 8), torch.full((1, 2), LEAST)), {})
    assert torch.isfinite(mask).all() and torch.isfinite(mask.softmax(-1)).all()


@pytest.mark.parametrize(("model", "path"), [("float16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32")])
def test_other_dtypes_stay(model: str, path: str) -> None:
    precision = LayerPrecision(getattr(torch, path))
    states, flags = torch.randn(1, 2, 8, dtype=getattr(torch, model)), torch.ones(1, 2, dtype=torch.bool)
    args, kwargs = precision.narrowed((states, flags), {"position_ids": None})
    assert args[0] is states and args[1] is flags and kwargs == {"position_ids": None}
    assert precision.widened((states,))[0] is states

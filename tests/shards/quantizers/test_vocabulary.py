"""The quantizer of a language model's vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertForSequenceClassification, LlamaForCausalLM

from sti_hf.model import Grid
from sti_hf.shards.quantizers import get_quantizer
from sti_hf.shards.quantizers.calibrated import calibrate
from sti_hf.shards.quantizers.calibrated.vocabulary import VocabularyQuantizer
from sti_hf.shards.quantizers.lloyd import LloydQuantizer
from tests.models import tiny_model
from tests.shards.calibration import batches


def table_and_states(rows: int = 300, hidden: int = 32) -> tuple[Tensor, Tensor]:
    """A vocabulary, and hidden states with a few strong directions."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(500, 6, generator=generator) @ torch.randn(6, hidden, generator=generator)
    states += 0.3 * torch.randn(states.shape, generator=generator)
    return torch.randn(rows, hidden, generator=generator), states


def strips(table: Tensor, rows: int, slices: int) -> tuple[Tensor, Grid]:
    """`[layers, slices, rows, hidden]`, the last padded by zeros."""
    layers = -(-len(table) // (rows * slices))
    padded = F.pad(table, (0, 0, 0, layers * slices * rows - len(table)))
    grid = Grid(layers, slices, table.shape[1], (("vocabulary", rows),))
    return padded.view(layers, slices, rows, -1), grid


@pytest.mark.parametrize(("rows", "slices"), [(300, 1), (64, 2), (16, 5)])
def test_strips_of_any_size_give_better_logits_than_lloyds(rows: int, slices: int) -> None:
    table, states = table_and_states()
    shards, grid = strips(table, rows, slices)
    for bits in (2, 3, 4, 6):
        errors = []
        for quantizer in (VocabularyQuantizer(states.t() @ states), get_quantizer("lloyd")):
            layers = [quantizer.quantize_layer(layer, each, grid) for layer, each in enumerate(shards)]
            values = torch.stack([layer.dequantize(bits) for layer in layers]).flatten(0, 2)
            assert values[len(table) :].abs().max().item() < 1e-5 if len(values) > len(table) else True
            errors.append(float(((values[: len(table)] - table) @ states.t()).square().mean()))
        assert errors[0] < errors[1]


def test_a_strip_does_not_depend_on_another() -> None:
    table, states = table_and_states()
    shards, grid = strips(table, 50, 3)
    quantizer = VocabularyQuantizer(states.t() @ states)
    one = Grid(6, 1, grid.row_length, grid.rows)
    together, alone = quantizer.quantize_layer(0, shards[0], grid), quantizer.quantize_layer(1, shards[0, 1:2], one)
    assert torch.equal(together.dequantize(3)[1], alone.dequantize(3)[0])


def test_other_shards_are_refused() -> None:
    table, states = table_and_states()
    quantizer = VocabularyQuantizer(states.t() @ states)
    with pytest.raises(ValueError, match="are not strips of a vocabulary whose rows have 32 weights"):
        quantizer.quantize_layer(0, table[None, :, :16], Grid(1, 1, 16, (("vocabulary", 300),)))
    with pytest.raises(ValueError, match="are not strips of a vocabulary"):
        quantizer.quantize_layer(0, table[None], Grid(1, 1, 32, (("q", 150), ("k", 150))))


def test_a_language_model_has_one_and_an_encoder_none() -> None:
    model = tiny_model(LlamaForCausalLM)
    vocabulary = calibrate(model, batches(model, 1), tuning_steps=0).vocabulary
    assert vocabulary is not None
    shards, grid = strips(model.lm_head.weight.detach(), 40, 2)
    errors = [
        float((vocabulary.quantize_layer(0, shards[0], grid).dequantize(bits) - shards[0]).square().mean())
        for bits in (2, 4, 6)
    ]
    assert errors == sorted(errors, reverse=True)
    encoder = tiny_model(BertForSequenceClassification)
    assert calibrate(encoder, batches(encoder, 1), tuning_steps=0).vocabulary.__class__ is LloydQuantizer

"""The model that is built for a store is the stock one, but for where its large weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedModel, RobertaForCausalLM

from sti_hf import shard_checkpoint
from sti_hf.errors import UnsupportedModelError
from sti_hf.integrations.building import empty_model
from sti_hf.model import get_architecture
from sti_hf.model.fused import in_parts
from sti_hf.runtime.modules.stored_model import METHODS
from tests.integrations.checkpoints import STOCK, checkpoint, difference
from tests.models import FAMILIES, TASK_HEADS, head_of, tiny_config, tiny_inputs

TIED = ("MaskedLM", "CausalLM", "LMHeadModel", "ForPreTraining")
HEADS = sorted(
    {head_of(family) for family in FAMILIES}
    | {head for heads in TASK_HEADS.values() for head in heads if head.__name__.endswith(TIED)},
    key=lambda head: head.__name__,
)
LOADERS_OWN = {"_is_hf_initialized", "_use_kernels", "_weight_conversions"}
"""What Transformers' loader notes of its own work: what it has set, no kernels (the default), names for saving."""
OWN = {"sti", "forward", "_output_capturing_hooks_installed", *METHODS}
"""What is a model's that runs from its store; Transformers' hooks are put in before a stock model has them."""


def state_of(model: PreTrainedModel) -> dict[str, Any]:
    """What a built and a stock model have in common besides weights and outputs."""
    config = model.config.to_dict()
    return {
        "config": {name: value for name, value in config.items() if name != "quantization_config"},
        "generation": model.generation_config.to_dict() if model.can_generate() else None,
        "buffers": {name: (buffer.dtype, buffer.tolist()) for name, buffer in model.named_buffers()},
        "training": {module.training for module in model.modules()},
        "attributes": set(vars(model)) - LOADERS_OWN - OWN,
        "name": model.name_or_path,
        "quantized": (getattr(model, "is_quantized", False), getattr(model, "hf_quantizer", None)),
    }


@pytest.mark.parametrize("model_class", HEADS, ids=lambda head: head.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_stock_model(model_class: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    source = checkpoint(model_class, tmp_path / "model")
    stock = model_class.from_pretrained(source, dtype=dtype)
    model = model_class.from_pretrained(source, sti_config=STOCK, dtype=dtype)
    assert state_of(model) == state_of(stock)
    with in_parts(stock, get_architecture(stock.config)):
        expected = dict(stock.named_parameters(remove_duplicate=False))
    orders = dict(model.named_parameters(remove_duplicate=False))
    assert orders
    for name, parameter in orders.items():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, expected[name]), name
    # Not every model narrows what it is given.
    inputs = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in tiny_inputs(stock).items()
    }
    assert difference(model(**inputs), stock(**inputs)) < (1e-5 if dtype == torch.float32 else 0.3)
    model.sti.close()


def test_a_model_without_weights_takes_no_memory_and_no_random_numbers() -> None:
    random = torch.get_rng_state()
    model = empty_model(BertModel, tiny_config("bert", vocab_size=2**30, hidden_size=4096), torch.float32)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {buffer.device.type for buffer in model.buffers()} == {"cpu"}
    assert torch.equal(torch.get_rng_state(), random)


class WithEmptyBuffer(BertModel):
    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.empty(3))


def test_a_buffer_without_values_is_refused(tmp_path: Path) -> None:
    store = shard_checkpoint(checkpoint(BertModel, tmp_path / "model"), tmp_path / "store", quantizer="gobo")
    with pytest.raises(UnsupportedModelError, match="WithEmptyBuffer makes its buffer mean without values"):
        WithEmptyBuffer.from_pretrained(store.path, sti_config=STOCK)


class WithFilledBuffers(BertForSequenceClassification):
    """A user's class, with code such as that of models on the Hub."""

    def __init__(self, config: BertConfig, scale: float = 1.0, *, bias: float = 0.0) -> None:
        super().__init__(config)
        self.register_buffer("steps", torch.linspace(0, 1, 5), persistent=False)
        self.register_buffer("table", torch.tensor([[0.5, 1.0], [2.0, 3.0]]), persistent=False)
        self.register_buffer("counts", torch.arange(4), persistent=False)
        self.register_buffer("limit", torch.full((2,), 0.1), persistent=False)
        self.drop_rates = [float(rate.item()) for rate in torch.linspace(0, 0.1, 3)]
        self.scale, self.bias = scale, bias


def test_a_users_class_with_buffers_and_arguments_of_its_own(classifier_store: Path) -> None:
    with torch.device("cpu"):
        expected = WithFilledBuffers(tiny_config("bert"), 2.0, bias=3.0)
    model = WithFilledBuffers.from_pretrained(classifier_store, 2.0, bias=3.0, sti_config=STOCK)
    assert (model.scale, model.bias, model.drop_rates) == (2.0, 3.0, expected.drop_rates)
    for name in ("steps", "table", "counts", "limit"):
        got, wanted = getattr(model, name), getattr(expected, name)
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)
    model.sti.close()


def test_generation_is_configured_as_of_the_stock_model(tmp_path: Path) -> None:
    source = checkpoint(RobertaForCausalLM, tmp_path / "model", bos_token_id=2, eos_token_id=3)
    stock = RobertaForCausalLM.from_pretrained(source)
    stock.generation_config.max_new_tokens = 7
    stock.generation_config.save_pretrained(source)
    model = RobertaForCausalLM.from_pretrained(source, sti_config=STOCK)
    assert model.generation_config.max_new_tokens == 7
    stock.generation_config.max_new_tokens = 5
    other = RobertaForCausalLM.from_pretrained(source, sti_config=STOCK, generation_config=stock.generation_config)
    assert other.generation_config.max_new_tokens == 5
    for each in (model, other):
        each.sti.close()

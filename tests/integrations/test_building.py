"""A store loaded without Transformers' general loader is the model that the general loader gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    pipeline,
)

from sti_hf import shard_checkpoint
from sti_hf.integrations import from_pretrained
from tests.integrations.checkpoints import STOCK, checkpoint, difference
from tests.models import TASK_HEADS, tiny_inputs

TIED = ("MaskedLM", "CausalLM", "LMHeadModel", "ForPreTraining")
LOADERS_OWN = {"_is_hf_initialized", "_use_kernels", "_weight_conversions"}
"""What the general loader notes of its own work: weights it has set, no kernels (the default), names for saving."""
HEADS = [head for heads in TASK_HEADS.values() for head in heads if not head.__name__.endswith(TIED)]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[PreTrainedModel | None]:
    """What plain loading gave, for every call of it."""
    results: list[PreTrainedModel | None] = []
    build = from_pretrained.build_plain

    def recorded(*arguments: Any) -> PreTrainedModel | None:
        results.append(build(*arguments))
        return results[-1]

    monkeypatch.setattr(from_pretrained, "build_plain", recorded)
    return results


def state_of(model: PreTrainedModel) -> dict[str, Any]:
    """What two models must have in common besides their outputs."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    config = model.config.to_dict()
    return {
        "config": config,
        "tensors": {name: (tensor.dtype, tensor.tolist(), tensor.requires_grad) for name, tensor in tensors.items()},
        "modules": {name: (type(module), module.training) for name, module in model.named_modules()},
        "attributes": set(vars(model)) - LOADERS_OWN,
        "quantizer": type(model.hf_quantizer),
        "is_quantized": model.is_quantized,
        "method": model.quantization_method,
    }


@pytest.mark.parametrize("model_class", HEADS, ids=lambda head: head.__name__)
def test_like_the_general_loader(model_class: Any, tmp_path: Path, built: list[Any]) -> None:
    store = shard_checkpoint(checkpoint(model_class, tmp_path / "c"), tmp_path / "s", quantizer="gobo").path
    plain = model_class.from_pretrained(store, sti_config=STOCK)
    assert built == [plain]
    general, _ = model_class.from_pretrained(store, sti_config=STOCK, output_loading_info=True)
    assert built == [plain]
    assert state_of(plain) == state_of(general)
    inputs = tiny_inputs(plain)
    assert difference(plain(**inputs), general(**inputs)) == 0
    for model in (plain, general):
        model.sti.close()


def test_ways_to_call(classifier_store: Path, built: list[Any]) -> None:
    source = str(classifier_store)
    AutoModelForSequenceClassification.from_pretrained(source).sti.close()
    AutoModelForSequenceClassification.from_pretrained(source, sti_config=STOCK, dtype="auto").sti.close()
    pipeline("text-classification", model=source, model_kwargs={"sti_config": STOCK}).model.sti.close()
    assert [type(model) for model in built] == [BertForSequenceClassification] * 3


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.bfloat16},
        {"device_map": "cpu"},
        {"attn_implementation": "eager"},
        {"key_mapping": {}},
        {"id2label": {0: "bad", 1: "good"}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_call_that_asks_for_something(classifier_store: Path, built: list[Any], options: dict[str, Any]) -> None:
    model = BertForSequenceClassification.from_pretrained(classifier_store, sti_config=STOCK, **options)
    assert built == []
    assert model.dtype == options.get("dtype", torch.float32)
    model.sti.close()


def test_another_class_than_the_stores(classifier_store: Path, built: list[Any]) -> None:
    BertModel.from_pretrained(classifier_store, sti_config=STOCK).sti.close()
    assert built == []


def test_a_tied_head(tmp_path: Path, built: list[Any]) -> None:
    BertForMaskedLM.from_pretrained(checkpoint(BertForMaskedLM, tmp_path), sti_config=STOCK).sti.close()
    assert built == []


def test_weights_that_do_not_fit_go_to_the_general_loader(classifier_store: Path, built: list[Any]) -> None:
    config = BertForSequenceClassification.config_class.from_pretrained(classifier_store, num_labels=5)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        BertForSequenceClassification.from_pretrained(classifier_store, config=config, sti_config=STOCK)
    assert built == [None]


def test_the_callers_configuration_is_left_as_it_was(classifier_store: Path, built: list[Any]) -> None:
    config = BertForSequenceClassification.config_class.from_pretrained(classifier_store)
    before = config.to_dict()
    model = BertForSequenceClassification.from_pretrained(classifier_store, config=config, sti_config=STOCK)
    assert built == [model]
    assert config.to_dict() == before
    model.sti.close()

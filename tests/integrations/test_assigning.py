"""A store opened as another class than it was made from: its weights under that class's names, or one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    DistilBertForMaskedLM,
    DistilBertModel,
    MPNetForMaskedLM,
    PreTrainedModel,
    RobertaForMaskedLM,
    RobertaModel,
)

from sti_hf import shard_checkpoint
from sti_hf.errors import StoreError
from sti_hf.integrations.assigning import assign_weights
from tests.integrations.checkpoints import STOCK, checkpoint, difference
from tests.models import tiny_inputs, tiny_model


def store_of(model_class: type[PreTrainedModel], folder: Path, **overrides: Any) -> Path:
    source = checkpoint(model_class, folder / "model", **overrides)
    return shard_checkpoint(source, folder / "store", quantizer="gobo").path


@pytest.mark.parametrize(
    ("stored", "asked", "arguments"),
    [
        (BertForSequenceClassification, BertModel, {}),
        (BertForPreTraining, BertForMaskedLM, {}),
        (BertForPreTraining, BertModel, {}),
        (BertForSequenceClassification, BertModel, {"add_pooling_layer": False}),
        (RobertaForMaskedLM, RobertaModel, {"add_pooling_layer": False}),
        (DistilBertForMaskedLM, DistilBertModel, {}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_part_of_what_is_stored(stored: Any, asked: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    store = store_of(stored, tmp_path)
    stock, expected = asked.from_pretrained(tmp_path / "model", output_loading_info=True, **arguments)
    model, info = asked.from_pretrained(store, sti_config=STOCK, output_loading_info=True, **arguments)
    assert type(model) is asked
    assert {**info, "unexpected_keys": None} == {**expected, "unexpected_keys": None}
    assert info["unexpected_keys"] == expected["unexpected_keys"] - {
        "cls.predictions.decoder.weight",  # tied: the store has it once
        "cls.predictions.decoder.bias",
        "lm_head.decoder.bias",
    }
    inputs = tiny_inputs(stock)
    assert difference(model(**inputs), stock(**inputs)) < 1e-5
    model.sti.close()


@pytest.mark.parametrize(
    ("stored", "asked", "lacking", "first", "advice"),
    [
        (BertModel, AutoModelForTokenClassification, 2, "classifier.weight", "--model-class BertForTokenClass"),
        (BertModel, AutoModelForMaskedLM, 6, "cls.predictions.bias", "--model-class BertForMaskedLM"),
        (BertForMaskedLM, BertForPreTraining, 4, "bert.pooler.dense.weight", "--model-class BertForPreTraining"),
        (
            BertForMaskedLM,
            AutoModelForSequenceClassification,
            4,
            "bert.pooler.dense.weight",
            "sti shard SRC STORE --model-class BertForSequenceClassification",
        ),
        (BertForQuestionAnswering, AutoModel, 2, "pooler.dense.weight", "load it with add_pooling_layer=False, or"),
        (MPNetForMaskedLM, AutoModel, 2, "pooler.dense.weight", "load it with add_pooling_layer=False, or"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_more_than_what_is_stored(
    stored: Any, asked: Any, lacking: int, first: str, advice: str, tmp_path: Path
) -> None:
    store = store_of(stored, tmp_path)
    with pytest.raises(StoreError) as error:
        asked.from_pretrained(store, sti_config=STOCK)
    message = str(error.value)
    assert f"lacks {lacking} of the weights" in message
    assert f"({first}, " in message
    assert advice in message
    assert len(message) < 300 + len(str(store))


def test_a_missing_untied_language_model_head_is_refused(tmp_path: Path) -> None:
    store = store_of(BertModel, tmp_path)
    with pytest.raises(StoreError, match=r"cls\.predictions"):
        AutoModelForMaskedLM.from_pretrained(store, sti_config=STOCK, tie_word_embeddings=False)


def test_a_head_of_another_size(classifier_store: Path) -> None:
    for options in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(StoreError, match=r"classifier\.weight: \[2, 32\] instead of \[5, 32\]"):
            AutoModelForSequenceClassification.from_pretrained(
                classifier_store, num_labels=5, sti_config=STOCK, **options
            )


def test_nothing_is_assigned_where_something_is_missing() -> None:
    model, other = tiny_model(BertForMaskedLM, seed=1), tiny_model(BertForMaskedLM, seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = dict(other.state_dict())
    del weights["bert.encoder.layer.1.output.dense.bias"]
    assigned = assign_weights(model, weights)
    assert assigned.missing == ["bert.encoder.layer.1.output.dense.bias"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tied_weights_are_one_parameter_and_untied_ones_two() -> None:
    weights = dict(tiny_model(BertForMaskedLM, seed=2).state_dict())
    for name in ("cls.predictions.decoder.weight", "cls.predictions.bias"):
        del weights[name]
    tied = tiny_model(BertForMaskedLM)
    assert assign_weights(tied, weights).missing == []
    assert tied.cls.predictions.decoder.weight is tied.bert.embeddings.word_embeddings.weight
    assert tied.cls.predictions.decoder.bias is tied.cls.predictions.bias
    untied = tiny_model(BertForMaskedLM, tie_word_embeddings=False)
    assert set(assign_weights(untied, weights).missing) == {"cls.predictions.decoder.weight", "cls.predictions.bias"}

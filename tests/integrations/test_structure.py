"""A configuration that does not fit a store is refused by the name of its field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertModel,
    ElectraModel,
    MPNetConfig,
    MPNetModel,
    Olmo2Model,
)

from sti_hf.errors import ConfigurationError
from tests.integrations.checkpoints import STOCK, checkpoint

OVERRIDES = [
    ("num_hidden_layers", 3, 2),
    ("num_hidden_layers", 3, 4),
    ("num_attention_heads", 4, 2),
    ("hidden_size", 32, 64),
    ("intermediate_size", 64, 128),
    ("vocab_size", 211, 200),
    ("max_position_embeddings", 70, 32),
]


@pytest.mark.parametrize(("field", "stored", "asked"), OVERRIDES)
def test_an_override(classifier: Path, classifier_store: Path, field: str, stored: int, asked: int) -> None:
    said = rf"^{field} of the store .* is {stored}, and {asked} is asked for"
    config = BertConfig.from_pretrained(classifier, **{field: asked})
    for source in (classifier, classifier_store):
        for model_class in (AutoModelForSequenceClassification, BertForSequenceClassification):
            with pytest.raises(ConfigurationError, match=said):
                model_class.from_pretrained(source, sti_config=STOCK, **{field: asked})
        with pytest.raises(ConfigurationError, match=said):
            BertForSequenceClassification.from_pretrained(source, config=config, sti_config=STOCK)


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.mark.parametrize(
    "override",
    [
        {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
        {"num_key_value_heads": 4},
        {"head_dim": 4},
    ],
    ids=["of the same shapes", "keys", "size"],
)
def test_heads_of_a_store_whose_slices_do_not_tell_them(override: dict[str, int], tmp_path: Path) -> None:
    source = checkpoint(Olmo2Model, tmp_path)
    field = next(iter(override))
    with pytest.raises(ConfigurationError, match=f"^{field} of the store .* is {HEADS[field]}, and {override[field]}"):
        Olmo2Model.from_pretrained(source, sti_config=STOCK, **override)
    Olmo2Model.from_pretrained(source, sti_config=STOCK).sti.close()


@pytest.mark.parametrize(
    ("model_class", "override", "field"),
    [
        (DistilBertModel, {"n_layers": 2}, "num_hidden_layers"),
        (DistilBertModel, {"hidden_dim": 128}, "hidden_dim"),
        (ElectraModel, {"embedding_size": 8}, "embedding_size"),
        (MPNetModel, {"num_hidden_layers": 1}, "num_hidden_layers"),
    ],
)
def test_other_families_names(model_class: Any, override: dict[str, int], field: str, tmp_path: Path) -> None:
    source = checkpoint(model_class, tmp_path)
    with pytest.raises(ConfigurationError, match=f"^{field} of the store"):
        model_class.from_pretrained(source, sti_config=STOCK, **override)
    model_class.from_pretrained(source, sti_config=STOCK).sti.close()


def test_a_configuration_or_a_class_of_another_family(classifier_store: Path) -> None:
    said = "is of the type 'mpnet', and the model in the store .* of 'bert'"
    with pytest.raises(ConfigurationError, match=said):
        MPNetModel.from_pretrained(classifier_store, sti_config=STOCK)
    with pytest.raises(ConfigurationError, match=said):
        AutoModel.from_pretrained(classifier_store, config=MPNetConfig(), sti_config=STOCK)


def test_other_overrides_are_taken(classifier_store: Path) -> None:
    model = BertModel.from_pretrained(classifier_store, sti_config=STOCK, layer_norm_eps=0.1, hidden_act="relu")
    assert (model.config.layer_norm_eps, model.config.hidden_act) == (0.1, "relu")
    assert model.embeddings.LayerNorm.eps == 0.1
    model.sti.close()

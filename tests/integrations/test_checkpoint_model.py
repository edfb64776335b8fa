"""Which class a checkpoint is sharded as, and that all of its weights are there: or one sentence."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    BertPreTrainedModel,
    DistilBertModel,
    PreTrainedModel,
)
from transformers.utils import logging

from sti_hf import ShardStore, shard_checkpoint
from sti_hf.errors import ConfigurationError, SourceError
from sti_hf.integrations.model_classes import class_by_name, stock_class
from sti_hf.shards.resident import read_resident
from tests.commands import Sti, done
from tests.integrations.checkpoints import STOCK, checkpoint, difference, edited, refused, save_checkpoint
from tests.models import TASK_HEADS, tiny_config, tiny_inputs, tiny_model

UNCLEAR = [
    None,
    [],
    ["TFBertModel"],
    ["MyOwnBert"],
    ["AutoModel"],
    ["pipeline"],
    ["BertPreTrainedModel"],
    ["GPT2Model"],
]
LAYER = "bert.encoder.layer.2.attention.self.key.weight"


class Scorer(BertPreTrainedModel):
    """A user's own head."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.score = nn.Linear(config.hidden_size, 7)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.score(self.bert(input_ids, attention_mask).last_hidden_state)


class Forgiving(Scorer):
    """A head that Transformers is told to make up where it is missing."""

    _keys_to_ignore_on_load_missing = (r"^score\.",)


def reweighted(source: Path, folder: Path, **changes: torch.Tensor | None) -> Path:
    """A copy of a checkpoint with other weights; None takes one out."""
    shutil.copytree(source, folder)
    state = {**load_file(source / "model.safetensors"), **changes}
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def architectures(store: ShardStore) -> list[str]:
    names: list[str] = json.loads((store.path / "config.json").read_text())["architectures"]
    return names


def head_of(store: ShardStore) -> set[str]:
    return {name for name in read_resident(store) if name.startswith(("classifier", "score", "cls"))}


# Which class.


def test_the_class_of_a_checkpoint() -> None:
    assert stock_class(tiny_config("bert", architectures=["BertForMaskedLM"])) is BertForMaskedLM
    assert stock_class(tiny_config("distilbert", architectures=["DistilBertModel"])) is DistilBertModel
    for model_type, heads in TASK_HEADS.items():
        for head in heads:
            assert stock_class(tiny_config(model_type, architectures=[head.__name__])) is head
    for names in [*UNCLEAR, ["BertModel", "BertForMaskedLM"]]:
        with pytest.raises(SourceError, match="name the class"):
            stock_class(tiny_config("bert", architectures=names))


def test_a_class_by_name() -> None:
    assert class_by_name("BertForMaskedLM") is BertForMaskedLM
    for name in ("AutoModel", "pipeline", "MyOwnBert", "BertConfig", "__doc__", "BertPreTrainedModel"):
        with pytest.raises(ConfigurationError, match="no model class"):
            class_by_name(name)


@pytest.mark.parametrize("names", UNCLEAR, ids=str)
def test_where_the_configuration_does_not_tell_the_class_must_be_named(
    classifier: Path, tmp_path: Path, names: Any, sti: Sti
) -> None:
    source = edited(classifier, tmp_path / "unclear", architectures=names)
    refused(source, tmp_path, r"is not clear .*model_class=.*--model-class BertForSequenceClassification")
    store = shard_checkpoint(source, tmp_path / "named", quantizer="gobo", model_class=BertForSequenceClassification)
    assert head_of(store) == {"classifier.weight", "classifier.bias"}
    assert architectures(store) == ["BertForSequenceClassification"]
    assert sti("shard", source, tmp_path / "store", "--quantizer", "gobo").status == 2
    done(sti("shard", source, tmp_path / "store", "--quantizer", "gobo", "--model-class", architectures(store)[0]))
    assert ShardStore.open(tmp_path / "store").index.to_json() == store.index.to_json()


@pytest.mark.parametrize("names", UNCLEAR, ids=str)
def test_an_encoder_and_nothing_else_is_an_encoder(tmp_path: Path, names: Any) -> None:
    source = edited(checkpoint(BertModel, tmp_path / "encoder"), tmp_path / "unclear", architectures=names)
    assert architectures(shard_checkpoint(source, tmp_path / "store", quantizer="gobo")) == ["BertModel"]


def test_the_class_that_asks_decides(classifier: Path) -> None:
    inputs = tiny_inputs(tiny_model(BertModel))
    for model_class in (BertForSequenceClassification, AutoModel, BertForSequenceClassification):
        model = model_class.from_pretrained(classifier, sti_config=STOCK)
        stock = model_class.from_pretrained(classifier)
        with torch.no_grad():
            assert difference(model(**inputs), stock(**inputs)) < 1e-5
        model.sti.close()


@pytest.mark.parametrize("asked", [BertModel, BertForMaskedLM])
def test_a_head_that_the_class_has_not_is_left_out(tmp_path: Path, asked: type[PreTrainedModel]) -> None:
    source = checkpoint(BertForPreTraining, tmp_path / "pretrained")
    store = shard_checkpoint(source, tmp_path / "store", quantizer="gobo", model_class=asked)
    assert architectures(store) == [asked.__name__]
    assert not [name for name in read_resident(store) if "seq_relationship" in name]


def test_a_users_own_head(tmp_path: Path) -> None:
    stock = tiny_model(Scorer)
    source = save_checkpoint(stock, tmp_path / "own")
    refused(source, tmp_path, "name the class")
    model = Scorer.from_pretrained(source, sti_config=STOCK)
    assert head_of(model.sti.store) == {"score.weight", "score.bias"}
    inputs = tiny_inputs(stock)
    with torch.no_grad():
        assert (model(**inputs) - stock(**inputs)).abs().max() < 1e-5
    model.sti.close()


def test_remote_code(tmp_path: Path) -> None:
    source = save_checkpoint(tiny_model(Scorer), tmp_path / "remote")
    lines = inspect.getsource(Scorer)
    (source / "own_model.py").write_text(
        f"from typing import Any\nimport torch\nfrom torch import nn\nfrom transformers import *\n\n{lines}"
    )
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "own_model.Scorer"}}))
    model = AutoModel.from_pretrained(source, trust_remote_code=True, sti_config=STOCK)
    assert type(model).__module__.startswith("transformers_modules.")
    assert head_of(model.sti.store) == {"score.weight", "score.bias"}
    stock = Scorer.from_pretrained(source)
    inputs = tiny_inputs(stock)
    with torch.no_grad():
        assert (model(**inputs) - stock(**inputs)).abs().max() < 1e-5
    model.sti.close()


def test_a_class_of_another_family(classifier: Path, tmp_path: Path) -> None:
    refused(
        classifier, tmp_path, "of type 'bert', and DistilBertModel takes .*'distilbert'", model_class=DistilBertModel
    )


# What is missing.


@pytest.mark.parametrize("asked", [BertForSequenceClassification, BertForMaskedLM, Scorer, Forgiving])
def test_a_head_that_is_missing_is_not_made_up(
    tmp_path: Path, asked: type[PreTrainedModel], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    source = checkpoint(BertModel, tmp_path / "encoder")
    said = refused(source, tmp_path, rf"lacks \d of the weights of {asked.__name__} \(", model_class=asked)
    prefix = {"BertForMaskedLM": "cls", "BertForSequenceClassification": "classifier"}.get(asked.__name__, "score")
    assert f"({prefix}." in said
    assert "decoder.weight" not in said, "it is tied to the word embeddings"
    assert "LOAD REPORT" not in caplog.text, "which says that they are newly initialized"
    with pytest.raises(SourceError, match="lacks"):
        asked.from_pretrained(source, sti_config=STOCK)


@pytest.mark.parametrize(
    "model_class", [heads[0] for heads in TASK_HEADS.values()] + [BertForMaskedLM], ids=lambda one: one.__name__
)
def test_nothing_is_missing_from_what_transformers_saves(tmp_path: Path, model_class: type[PreTrainedModel]) -> None:
    source = checkpoint(model_class, tmp_path / "model")
    assert architectures(shard_checkpoint(source, tmp_path / "s", quantizer="gobo")) == [model_class.__name__]


def test_a_pooler_that_is_missing_can_be_left_out(tmp_path: Path) -> None:
    source = checkpoint(BertForMaskedLM, tmp_path / "masked")
    assert "add_pooling_layer=False" in refused(source, tmp_path, "lacks 2 .*pooler", model_class=BertModel)
    without = {"add_pooling_layer": False}
    store = shard_checkpoint(source, tmp_path / "s", quantizer="gobo", model_class=BertModel, model_arguments=without)
    assert not [name for name in read_resident(store) if "pooler" in name]
    model, stock = (
        AutoModel.from_pretrained(source, add_pooling_layer=False, **options)
        for options in ({"sti_config": STOCK}, {})
    )
    inputs = tiny_inputs(stock)
    with torch.no_grad():
        assert difference(model(**inputs), stock(**inputs)) < 1e-5
    model.sti.close()


@pytest.mark.parametrize("lost", [LAYER, "bert.embeddings.LayerNorm.bias", "bert.pooler.dense.weight"])
def test_lost_weights(classifier: Path, tmp_path: Path, lost: str) -> None:
    broken = reweighted(classifier, tmp_path / "broken", **{lost: None})
    refused(broken, tmp_path, rf"lacks 1 of the weights of BertForSequenceClassification \({lost}\)")


def test_many_lost_weights_are_counted(classifier: Path, tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in load_file(classifier / "model.safetensors").items()}
    broken = reweighted(classifier, tmp_path / "broken", **dict.fromkeys(load_file(classifier / "model.safetensors")))
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    assert len(refused(broken, tmp_path, rf"lacks {len(state)} of the weights .*, …\)")) < 700


# What does not fit.


@pytest.mark.parametrize("layers", [1, 2])
def test_layers_beyond_the_configurations_are_not_dropped(classifier: Path, tmp_path: Path, layers: int) -> None:
    source = edited(classifier, tmp_path / "fewer", num_hidden_layers=layers)
    refused(source, tmp_path, rf"has {16 * (3 - layers)} weights of its encoder for which .* has no place \(bert.enc")
    refused(source, tmp_path, "no place", model_class=BertModel)


def test_layers_that_the_weights_have_not(classifier: Path, tmp_path: Path) -> None:
    refused(edited(classifier, tmp_path / "more", num_hidden_layers=4), tmp_path, "lacks 16 of the weights")


@pytest.mark.parametrize(
    ("field", "value", "key"),
    [
        ("vocab_size", 210, "bert.embeddings.word_embeddings.weight"),
        ("intermediate_size", 128, "bert.encoder.layer.0.intermediate.dense.bias"),
        ("hidden_size", 64, "bert.embeddings.LayerNorm.bias"),
        ("id2label", {"0": "a", "1": "b", "2": "c"}, "classifier.bias"),
    ],
)
def test_other_sizes(classifier: Path, tmp_path: Path, field: str, value: Any, key: str) -> None:
    source = edited(classifier, tmp_path / "other", **{field: value})
    refused(source, tmp_path, rf"have other sizes than its config.json says, such as {key}: \[\d+.* instead of \[")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name",
    [LAYER, "classifier.bias", "bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.bias"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite(
    classifier: Path, tmp_path: Path, name: str, value: float, dtype: torch.dtype
) -> None:
    source = edited(classifier, tmp_path / "dtype", dtype=str(dtype).removeprefix("torch."))
    state = {key: tensor.to(dtype) for key, tensor in load_file(source / "model.safetensors").items()}
    state[name].view(-1)[-1] = value
    broken = reweighted(source, tmp_path / "broken", **state)
    refused(broken, tmp_path, rf"The weight {name if 'word' not in name else 'word_embeddings.weight'} holds values")

"""From a checkpoint to its store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForSequenceClassification, BertModel, XLMRobertaXLModel
from transformers.utils import logging

from sti_hf import shard_checkpoint
from sti_hf.errors import SourceError, SourceNotFoundError
from sti_hf.integrations.tokenizer import TOKENIZER_FILES, load_tokenizer
from tests.integrations.checkpoints import checkpoint, save_checkpoint
from tests.models import tiny_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(BertModel, tmp_path_factory.mktemp("checkpoints") / "encoder")


@pytest.mark.parametrize("enabled", [True, False])
def test_progress_bar(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], enabled: bool) -> None:
    (logging.enable_progress_bar if enabled else logging.disable_progress_bar)()
    try:
        shard_checkpoint(source, tmp_path / "store", quantizer="gobo")
    finally:
        logging.enable_progress_bar()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert (f"Sharding {source}" in printed.err) == enabled
    assert ("3/3" in printed.err) == enabled


def test_the_tokenizer_comes_along_as_it_is(source: Path, tmp_path: Path) -> None:
    store = shard_checkpoint(source, tmp_path / "store", quantizer="gobo")
    text = "a cold model answers. word100"
    copied, original = (AutoTokenizer.from_pretrained(folder) for folder in (store.path, source))
    assert copied(text)["input_ids"] == original(text)["input_ids"]
    assert original.unk_token_id not in original(text)["input_ids"]
    for name in TOKENIZER_FILES:
        assert (source / name).exists() == (store.path / name).exists()


@pytest.mark.parametrize("model_class", [BertModel, XLMRobertaXLModel])
def test_a_checkpoint_without_tokenizer_makes_a_store_without(model_class: Any, tmp_path: Path) -> None:
    tiny_model(model_class).save_pretrained(tmp_path / "model")
    store = shard_checkpoint(tmp_path / "model", tmp_path / "store", quantizer="gobo")
    assert not [name for name in TOKENIZER_FILES if (store.path / name).exists()]


# What goes wrong, in one sentence.


def refused(source: Path | str, folder: Path, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        shard_checkpoint(source, folder / "store", quantizer="gobo")
    assert not (folder / "store").exists()
    assert not list(folder.glob(".store*"))


def test_no_such_folder_and_no_such_id(tmp_path: Path) -> None:
    refused(tmp_path / "none", tmp_path, OSError, r"There is no folder .*none, and it is not the id of a repository")
    refused("a/b/c", tmp_path, OSError, "There is no folder a/b/c")
    refused("nobody/nothing", tmp_path, OSError, "huggingface.co")


def test_a_store_is_not_sharded_again(source: Path, tmp_path: Path) -> None:
    store = shard_checkpoint(source, tmp_path / "first", quantizer="gobo")
    refused(store.path, tmp_path, ValueError, "is a store already")


def test_a_destination_in_use(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        shard_checkpoint(source, tmp_path / "mine", quantizer="gobo")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter"]


@pytest.mark.parametrize("harm", ["cut short", "cut to its length", "empty", "absent"])
def test_damaged_weights(source: Path, tmp_path: Path, harm: str) -> None:
    broken = shutil.copytree(source, tmp_path / "broken")
    weights = broken / "model.safetensors"
    content = weights.read_bytes()
    if harm == "absent":
        weights.unlink()
        refused(broken, tmp_path, SourceNotFoundError, "no file named model.safetensors")
        return
    weights.write_bytes(content[: {"cut short": -10, "cut to its length": 8, "empty": 0}[harm]])
    refused(broken, tmp_path, SourceError, "weights of .*broken are damaged or incomplete, model.safetensors")


@pytest.mark.parametrize("lost", ["encoder.layer.1.attention.self.key.weight", "embeddings.word_embeddings.weight"])
def test_missing_weights_are_not_made_up(source: Path, tmp_path: Path, lost: str) -> None:
    broken = shutil.copytree(source, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    del state[lost]
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    refused(broken, tmp_path, SourceError, rf"lacks 1 of the weights of BertModel \({lost}\)")


def test_a_damaged_configuration(source: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(source, tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": "bert",')
    refused(broken, tmp_path, SourceError, "config.json is damaged: it is not a valid JSON file")


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("add_cross_attention", True, "cross-attention"),
        ("intermediate_size", 66, "intermediate_size 66 cannot be cut into 4 equal slices"),
    ],
)
def test_models_that_cannot_be_cut(source: Path, tmp_path: Path, field: str, value: Any, sentence: str) -> None:
    other = shutil.copytree(source, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, field: value}))
    refused(other, tmp_path, ValueError, sentence)


def test_an_unknown_quantizer(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no quantizer 'best'"):
        shard_checkpoint(source, tmp_path / "store", quantizer="best")


def test_a_classifier_keeps_its_labels(tmp_path: Path) -> None:
    labels = {0: "bad", 1: "good"}
    stock = tiny_model(BertForSequenceClassification, id2label=labels, label2id={v: k for k, v in labels.items()})
    save_checkpoint(stock, tmp_path / "model")
    store = shard_checkpoint(tmp_path / "model", tmp_path / "store", quantizer="gobo")
    config = json.loads((store.path / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["quantization_config"] == {"quant_method": "sti", "quantizer": "gobo"}


def test_a_damaged_tokenizer(source: Path, tmp_path: Path) -> None:
    store = shard_checkpoint(source, tmp_path / "store", quantizer="gobo")
    load_tokenizer(store)
    (store.path / "tokenizer.json").write_text("{")
    with pytest.raises(SourceError, match=r"The tokenizer of .*store cannot be loaded"):
        load_tokenizer(store)
    for name in TOKENIZER_FILES:
        (store.path / name).unlink(missing_ok=True)
    with pytest.raises(SourceError, match="has no tokenizer"):
        load_tokenizer(store)

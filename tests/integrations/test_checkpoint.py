"""From a checkpoint to its store in the cache."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.constants import HF_HOME
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertModel,
    XLMRobertaXLModel,
)
from transformers.utils import logging

from sti_hf import ShardStore, shard_checkpoint
from sti_hf.integrations import checkpoint as checkpoints
from sti_hf.integrations.checkpoint import TOKENIZER_FILES, cache_home, resolve_store, stock_class
from sti_hf.shards import sharding
from tests.integrations.checkpoints import STOCK, checkpoint, difference, save_checkpoint
from tests.models import tiny_config, tiny_inputs, tiny_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(BertModel, tmp_path_factory.mktemp("checkpoints") / "encoder")


def test_the_cache_follows_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STI_HOME", str(tmp_path))
    assert cache_home() == tmp_path
    for unset in ("", None):
        monkeypatch.setenv("STI_HOME", unset) if unset is not None else monkeypatch.delenv("STI_HOME")
        assert cache_home() == Path(HF_HOME) / "sti"


def test_a_checkpoint_is_sharded_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve_store(source, "gobo")
    assert first.path.parent == cache_home() / "stores"
    assert first.verify() == []
    monkeypatch.setattr(checkpoints, "write_store", None)
    assert resolve_store(source, "gobo").path == first.path
    assert resolve_store(str(source) + "/", "gobo").path == first.path
    assert resolve_store(first.path, "lloyd").path == first.path, "a store is itself"


def test_another_quantizer_is_another_store(source: Path) -> None:
    stores = {name: resolve_store(source, name) for name in ("gobo", "lloyd")}
    assert stores["gobo"].path != stores["lloyd"].path
    assert all(store.index.quantizer == name for name, store in stores.items())


def test_a_changed_checkpoint_makes_a_new_store(tmp_path: Path) -> None:
    stores = []
    for seed in (1, 2):
        stock = tiny_model(BertModel, seed=seed)
        stock.save_pretrained(tmp_path)
        model = AutoModel.from_pretrained(tmp_path, sti_config=STOCK)
        inputs = tiny_inputs(stock)
        with torch.no_grad():
            assert difference(model(**inputs), stock(**inputs)) < 1e-5
        stores.append(model.sti.store)
        model.sti.close()
    assert stores[0].path != stores[1].path
    assert stores[0].index.fingerprint != stores[1].index.fingerprint


def test_a_failed_sharding_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STI_HOME", str(tmp_path / "home"))
    checkpoint(BertModel, tmp_path / "model")

    def fail(*arguments: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("sti_hf.shards.sharding._write_config", fail)
    with pytest.raises(OSError, match="disk full"):
        resolve_store(tmp_path / "model", "gobo")
    assert list((tmp_path / "home" / "stores").iterdir()) == []


def test_processes_that_shard_at_once_agree(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STI_HOME", str(tmp_path))
    context = multiprocessing.get_context("fork")
    everyone, paths = context.Barrier(3), context.SimpleQueue()
    write_config = sharding._write_config

    def write_together(*arguments: Any) -> None:
        everyone.wait(60)
        write_config(*arguments)

    def shard() -> None:
        sharding._write_config = write_together
        paths.put(resolve_store(source, "gobo").path)

    processes = [context.Process(target=shard) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert {paths.get() for _ in processes} == {resolve_store(source, "gobo").path}
    assert len(list((tmp_path / "stores").iterdir())) == 1
    assert resolve_store(source, "gobo").verify() == []


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


def test_the_class_of_a_checkpoint() -> None:
    assert stock_class(tiny_config("bert", architectures=["BertForMaskedLM"])) is BertForMaskedLM
    assert stock_class(tiny_config("distilbert", architectures=None)) is DistilBertModel
    assert stock_class(tiny_config("bert", architectures=["MyOwnBert"])) is BertModel


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
        refused(broken, tmp_path, OSError, "no file named model.safetensors")
        return
    weights.write_bytes(content[: {"cut short": -10, "cut to its length": 8, "empty": 0}[harm]])
    refused(broken, tmp_path, ValueError, "weights of .*broken are damaged or incomplete")


@pytest.mark.parametrize("lost", ["encoder.layer.1.attention.self.key.weight", "embeddings.word_embeddings.weight"])
def test_missing_weights_are_not_made_up(source: Path, tmp_path: Path, lost: str) -> None:
    broken = shutil.copytree(source, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    del state[lost]
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    refused(broken, tmp_path, ValueError, f"lacks 1 weights that a store cannot do without, such as {lost}")


def test_a_damaged_configuration(source: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(source, tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": "bert",')
    refused(broken, tmp_path, OSError, "not a valid JSON file")


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


# The Hub, as far as it can be had offline: from its cache.


@pytest.fixture
def on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `snapshots` for a repository `someone/model` in a Hub cache of the test's own: revision "main" is
    `snapshots/aaa`, revision "old" is `snapshots/bbb`."""
    repository = tmp_path / "hub" / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    for name, commit in (("main", "a" * 40), ("old", "b" * 40)):
        (repository / "refs" / name).write_text(commit)
    return repository / "snapshots"


def from_hub(on_hub: Path, **options: Any) -> ShardStore:
    return resolve_store("someone/model", "gobo", cache_dir=str(on_hub.parents[1]), **options)


def test_a_hub_id_is_sharded_once_a_revision(on_hub: Path) -> None:
    models = {"main": tiny_model(BertModel, seed=1), "old": tiny_model(BertModel, seed=2)}
    for model, commit in zip(models.values(), ("a" * 40, "b" * 40)):
        save_checkpoint(model, on_hub / commit)
    newest, old = from_hub(on_hub), from_hub(on_hub, revision="old")
    assert newest.path.name.startswith("model-")
    assert newest.path != old.path
    assert newest.index.fingerprint != old.index.fingerprint
    assert from_hub(on_hub, revision="main").path == newest.path
    assert (newest.path / "tokenizer.json").exists()


def test_a_store_on_the_hub_is_used_as_it_is(on_hub: Path, source: Path) -> None:
    shard_checkpoint(source, on_hub / ("a" * 40), quantizer="gobo")
    assert from_hub(on_hub).path == on_hub / ("a" * 40)
    model = AutoModel.from_pretrained("someone/model", cache_dir=str(on_hub.parents[1]), sti_config=STOCK)
    stock = BertModel.from_pretrained(source)
    inputs = tiny_inputs(stock)
    with torch.no_grad():
        assert difference(model(**inputs), stock(**inputs)) < 1e-5
    model.sti.close()


def test_a_classifier_keeps_its_labels(tmp_path: Path) -> None:
    labels = {0: "bad", 1: "good"}
    stock = tiny_model(BertForSequenceClassification, id2label=labels, label2id={v: k for k, v in labels.items()})
    save_checkpoint(stock, tmp_path / "model")
    store = shard_checkpoint(tmp_path / "model", tmp_path / "store", quantizer="gobo")
    config = json.loads((store.path / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["quantization_config"] == {"quant_method": "sti", "quantizer": "gobo"}

"""A user's mistakes: exit code 2 and one line on stderr, never a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification, GPT2Config, GPT2Model

from sti_hf import shard_checkpoint
from sti_hf.shards.store import RESIDENT_FILE
from tests.commands import Sti
from tests.integrations.checkpoints import checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(BertForSequenceClassification, tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture(scope="module")
def store(model: Path) -> Path:
    return shard_checkpoint(model, model.parent / "store", quantizer="gobo").path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "VERB"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["plan"], "STORE"),
        (["plan", "{store}", "--target-latency"], "expected one argument"),
        (["plan", "{store}", "--target-latency", "0"], "target_latency must be a positive number"),
        (["plan", "{store}", "--target-latency", "soon"], "target_latency must be a positive number"),
        (["plan", "{store}", "--preload-budget", "much"], "preload_budget must be a number of bytes"),
        (["plan", "{store}", "--seq-len", "0"], "seq_len must be a number of tokens"),
        (["plan", "{store}", "--seq-len", "100000"], "the longest input of this model has 70 tokens"),
        (["plan", "{store}", "--batch-size", "0"], "batch_size must be a number of sequences"),
        (["plan", "{store}", "--memory-budget", "10"], "A memory_budget of 10 bytes is too small"),
        (["plan", "{store}", "--max-loss", "-1"], "max_loss must be a number of points"),
        (["plan", "{store}", "--seq-len", "long"], "invalid int value: 'long'"),
        (["plan", "{store}", "--fidelity", "7"], "invalid choice: 7"),
        (["plan", "{store}", "--fidelity", "4"], "fidelity is for the baseline strategies"),
        (["plan", "{store}", "--strategy", "preload"], "needs fidelity="),
        (["plan", "{store}", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["plan", "{model}"], "is not a store"),
        (["plan", "{tmp}/nowhere"], "is not a store"),
        (["plan", "{other}"], "STIConfig has no field 'colour'"),
        (["plan", "{garbled}"], "config.json of the store"),
        (["run", "{store}"], "TEXT"),
        (["run", "{tmp}/nowhere", "a"], "is not a store"),
        (["verify", "{tmp}/nowhere"], "is not a store"),
        (["verify", "{cut}"], "is cut short or changed"),
        (["profile-device", "{model}"], "is not a store"),
        (["profile-device", "{store}", "--compute-dtype", "int8"], "invalid choice: 'int8'"),
        (["shard", "{model}"], "STORE"),
        (["shard", "{tmp}/nowhere", "{tmp}/new"], "There is no folder"),
        (["shard", "nobody/nothing", "{tmp}/new"], "huggingface.co"),
        (["shard", "{gpt2}", "{tmp}/new"], "'gpt2' are not supported; supported are bert"),
        (["shard", "{model}", "{store}"], "exists and is not empty"),
        (["shard", "{store}", "{tmp}/new"], "is a store already"),
        (["shard", "{model}", "{tmp}/new", "--quantizer", "best"], "invalid choice: 'best'"),
        (["shard", "{mistyped}", "{tmp}/new"], "hidden_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(
    sti: Sti, model: Path, store: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    names = {"model": model, "store": store, "tmp": tmp_path}
    for name, make in BROKEN.items():
        if any(f"{{{name}}}" in argument for argument in arguments):
            names[name] = make(model, store, tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    result = sti(*(argument.format(**names) for argument in arguments))
    assert result.status == 2
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("sti")
    assert " error: " in line
    assert sentence in line
    assert sorted(tmp_path.rglob("*")) == before


def other_defaults(model: Path, store: Path, folder: Path) -> Path:
    shutil.copytree(store, folder)
    config = json.loads((store / "config.json").read_text())
    config["quantization_config"]["colour"] = "blue"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def garbled_config(model: Path, store: Path, folder: Path) -> Path:
    shutil.copytree(store, folder)
    (folder / "config.json").write_text("{")
    return folder


def cut_store(model: Path, store: Path, folder: Path) -> Path:
    shutil.copytree(store, folder)
    (folder / RESIDENT_FILE).write_bytes((store / RESIDENT_FILE).read_bytes()[:-1])
    return folder


def gpt2(model: Path, store: Path, folder: Path) -> Path:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8, bos_token_id=1, eos_token_id=1)
    GPT2Model(config).save_pretrained(folder)
    return folder


def mistyped_config(model: Path, store: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    return folder


BROKEN = {
    "other": other_defaults,
    "garbled": garbled_config,
    "cut": cut_store,
    "gpt2": gpt2,
    "mistyped": mistyped_config,
}

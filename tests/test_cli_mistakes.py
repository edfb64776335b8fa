"""A user's mistakes: exit code 2 and one line on stderr, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification, BertModel, BloomConfig, BloomModel

from sti_hf import cli, shard_checkpoint
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
        (["run", "{store}", ""], "The text '' is empty: give one with words in it."),
        (["run", "{store}", "a cold model", " \t "], "is empty: give one with words in it."),
        (["run", "{store}", "cold " * 80], "A text has 82 tokens, and this model takes 70; shorten it."),
        (
            ["run", "{store}", "a", "--strict", "--target-latency", "1us"],
            "No plan of 16 tokens meets the target latency",
        ),
        (["run", "{flipped}", "a"], "resident.safetensors is damaged: its checksum does not match"),
        (["run", "{headless}", "a"], "lacks 2 of the weights of BertForTokenClassification (classifier.weight"),
        (["verify", "{tmp}/nowhere"], "is not a store"),
        (["verify", "{cut}"], "is cut short or changed"),
        (["profile-device", "{model}"], "is not a store"),
        (["profile-device", "{store}", "--compute-dtype", "int8"], "invalid choice: 'int8'"),
        (["shard", "{model}"], "STORE"),
        (["shard", "{tmp}/nowhere", "{tmp}/new"], "There is no folder"),
        (["shard", "nobody/nothing", "{tmp}/new"], "huggingface.co"),
        (["shard", "{bloom}", "{tmp}/new"], "'bloom' are not supported; supported are audio"),
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
    assert len(line) < 700
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


def bloom(model: Path, store: Path, folder: Path) -> Path:
    config = BloomConfig(n_layer=1, n_head=2, hidden_size=8, vocab_size=20)
    BloomModel(config).save_pretrained(folder)
    return folder


def mistyped_config(model: Path, store: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    return folder


def flipped_bit(model: Path, store: Path, folder: Path) -> Path:
    shutil.copytree(store, folder)
    content = bytearray((store / RESIDENT_FILE).read_bytes())
    content[-1] ^= 1
    (folder / RESIDENT_FILE).write_bytes(content)
    return folder


def without_its_head(model: Path, store: Path, folder: Path) -> Path:
    shard_checkpoint(model, folder, model_class=BertModel, quantizer="gobo")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForTokenClassification"]}))
    return folder


def test_an_error_with_a_traceback_in_it_is_cut(sti: Sti, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise ValueError("Could not load\n" + 100 * "  File somewhere\n")

    monkeypatch.setattr("sti_hf.commands.verify.verify_store", fails)
    result = sti("verify", store)
    assert result.status == 2
    (line,) = result.err.splitlines()
    assert line.startswith("sti: error: Could not load File somewhere")
    assert line.endswith("…")
    assert len(line) < 330


BROKEN = {
    "flipped": flipped_bit,
    "headless": without_its_head,
    "other": other_defaults,
    "garbled": garbled_config,
    "cut": cut_store,
    "bloom": bloom,
    "mistyped": mistyped_config,
}


def test_a_reader_that_has_seen_enough(sti: Sti, store: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    child = os.fork()
    if child == 0:
        status = -1
        try:
            os.dup2(writing, 1)
            with (tmp_path / "errors").open("w") as errors, open(1, "w", closefd=False) as output:
                sys.stdout, sys.stderr = output, errors
                status = cli.main(["plan", str(store), "--json"])
        finally:
            os._exit(status)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert (tmp_path / "errors").read_text() == ""

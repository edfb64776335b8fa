"""The README's code and commands, run on a tiny model."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import BertForSequenceClassification, BertModel, GPT2LMHeadModel, pipeline
from transformers.utils import logging

from sti_hf import cli, shard_checkpoint
from sti_hf.shards.store import store_defaults
from tests.integrations.checkpoints import checkpoint, use_known_device
from tests.tasks import sentences, write_dataset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    command
    for language, block in BLOCKS
    if language != "python"
    for command in re.findall(r"^((?:sti|make|python|pip) .*?)(?: +#.*)?$", block, flags=re.MULTILINE)
]
PLACEHOLDER = '"path/or/hub-id"'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(BertForSequenceClassification, tmp_path_factory.mktemp("readme") / "model")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(BertModel, tmp_path_factory.mktemp("readme") / "encoder")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with the columns of SST-2."""
    texts = sentences(12)
    labels = [index % 2 for index in range(12)]
    return write_dataset(tmp_path_factory.mktemp("readme-data"), "validation", {"sentence": texts, "label": labels})


@pytest.fixture(autouse=True)
def _known_device(monkeypatch: pytest.MonkeyPatch) -> None:
    use_known_device(monkeypatch)


def test_it_has_code_and_commands() -> None:
    assert len(PYTHON) == 4
    assert {command.split()[0] for command in COMMANDS} >= {"make", "sti"}
    verbs = [command.split()[1] for command in COMMANDS if command.startswith("sti ")]
    assert verbs[0] == "shard", "the others need the store that it makes"


def test_the_python_code(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, *_ = PYTHON
    assert code.count(PLACEHOLDER) == 1
    assert len(code.splitlines()) < 16, "ten lines of Python"
    names: dict[str, Any] = {}
    exec(code.replace(PLACEHOLDER, repr(str(model))), names)
    printed = capsys.readouterr().out
    assert "tensor(" in printed
    assert "layer" in printed
    session = names["model"].sti
    assert type(names["model"]) is BertForSequenceClassification
    assert (session.plan.target_latency, session.plan.preload_budget) == (0.4, 4_000_000)
    session.close()


@pytest.mark.parametrize("which", ["store", "checkpoint"])
def test_sentence_transformers(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str) -> None:
    _, code, *_ = PYTHON
    ((call, otherwise),) = re.findall(r"SentenceTransformer\((.*)\)  # or (.*)", code)
    if which == "store":
        store = shard_checkpoint(encoder, tmp_path / "store", quantizer="gobo").path
        code = code.replace('"STORE"', repr(str(store)))
    else:
        assert otherwise.count("{...}") == 1
        code = code.replace(call, otherwise.replace("{...}", '{"target_latency": "50ms"}'))
        code = code.replace('"SRC"', repr(str(encoder)))
    names: dict[str, Any] = {}
    exec(code, names)
    assert any(note in capsys.readouterr().out for note in names["notes"])
    assert names["found"].shape == (1, 2)
    names["encoder"].transformers_model.sti.close()


def test_a_language_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoint(GPT2LMHeadModel, tmp_path / "model")
    store = shard_checkpoint(source, tmp_path / "store", quantizer="gobo").path
    names: dict[str, Any] = {}
    exec(PYTHON[2].replace('"STORE"', repr(str(store))), names)
    generation = names["writer"].sti.last_generation
    assert len(generation.steps) == names["text"].shape[1] - names["prompt"]["input_ids"].shape[1] - 1
    assert str(generation.time_to_first_token) in capsys.readouterr().out
    names["writer"].sti.close()


def test_profiling_a_task_of_ones_own(model: Path, data: Path, tmp_path: Path) -> None:
    *_, code = PYTHON
    store = shard_checkpoint(model, tmp_path / "store", quantizer="gobo")
    metric = 'metric="accuracy"'  # on the Hub
    for word, value in {
        '"STORE"': repr(str(store.path)),
        '"your/dataset"': repr(str(data)),
        '"text"': '"sentence"',
        metric: "metric=lambda predictions, labels: {'accuracy': float((predictions == labels).mean())}",
        'part="all"': 'part="all", base_bits=2',  # the tiny model is no better than chance
    }.items():
        assert code.count(word) == 1
        code = code.replace(word, value)
    exec(code, {})
    assert store_defaults(store.path)["importance"] == "intents"


def test_the_pipeline(model: Path) -> None:
    (call,) = re.findall(r"`(pipeline\(.*?\))`", README)
    assert call.count("{...}") == 1
    pipe = eval(call.replace("{...}", '{"target_latency": "200ms"}'), {"pipeline": pipeline, "source": str(model)})
    assert pipe("a cold model")[0]["score"] > 0
    pipe.model.sti.close()


def test_the_commands(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a cold model\nanswers .\n")
    stores = {name: str(tmp_path / name) for name in ("STORE", "CALIBRATED_STORE")}
    paths = {**stores, "SRC": str(model), "DATA": str(data), "TEXTS": str(texts)}
    paths["report.html"] = str(tmp_path / "report.html")
    verbosity = logging.get_verbosity()
    try:
        for command in COMMANDS:
            if command.startswith("sti "):
                arguments = [paths.get(word, word) for word in shlex.split(command)[1:]]
                assert cli.main(arguments) == 0, capsys.readouterr().err
                assert capsys.readouterr().out, command
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python ")])
def test_the_benchmarks(command: str, model: Path, tmp_path: Path) -> None:
    _, *words = shlex.split(command.replace("CHECKPOINT", str(model)).replace("--disk-rate 200", ""))
    short = [] if "bench_sharding" in command else ["--runs", "2", "--tokens", "16"]
    environment = {**os.environ, "STI_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words, *short], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+\.\d", done.stdout), "it prints figures"


def test_the_targets_and_links_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for command in COMMANDS:
        tool, *words = shlex.split(command)
        if tool == "make":
            assert words[0] in targets
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / path).exists(), f"the README links to {path}"

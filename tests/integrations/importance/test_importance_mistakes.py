"""Profiling a task end to end: what is wrong is one line."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from transformers import (
    BertForMaskedLM,
)

from sti_hf import shard_checkpoint
from sti_hf.integrations.tokenizer import TOKENIZER_FILES
from tests.commands import Sti
from tests.integrations.checkpoints import checkpoint

EXHAUSTIVE = ("--task", "sst2", "--method", "exhaustive", "--base-fidelity", 2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--task", "squad"], "invalid choice: 'squad'"),
        (["--task", "mnli", "--dataset", "{data}"], "Task mnli has 3 labels, and the head of this BertForSequence"),
        (["--task", "stsb", "--dataset", "{data}"], r"Task stsb has 1 output \(a regression\)"),
        (
            ["--task", "mrpc", "--dataset", "{data}"],
            "has no column 'sentence1', which task mrpc needs; its columns are",
        ),
        (["--task", "sst2", "--dataset", "{data}", "--split", "train"], "cannot be loaded: Unknown split"),
        (["--task", "sst2", "--dataset", "{data}", "--split", "test", "--method", "exhaustive"], "has no labels"),
        (["--task", "sst2", "--dataset", "{folder}/nowhere"], "cannot be loaded"),
        (["--task", "sst2", "--dataset", "{data}", "--samples", "0"], "samples must be at least 1"),
        (["--task", "sst2", "--dataset", "{data}", "--base-fidelity", "6"], "base fidelity must be 2 to 5 bits"),
        (["--task", "sst2", "--dataset", "{data}", "--name", "../x"], "cannot be an importance profile's name"),
        (["--task", "sst2", "--dataset", "{data}", "--metric", "{folder}"], "The metric '.*' of task sst2 cannot be"),
        (["--task", "sst2", "--dataset", "{data}", "--method", "guess"], "invalid choice: 'guess'"),
        (["--task", "sst2", "--dataset", "{data}", "--part", "third"], "invalid choice: 'third'"),
        ([], "one of the arguments --task --texts is required"),
        (["--task", "sst2", "--texts", "{folder}"], "--texts: not allowed with argument --task"),
        (["--texts", "{folder}/model/config.json"], "for language models, .* this is a BertForSequenceClassification"),
        (["--texts", "{folder}/model/config.json", "--split", "test"], "split belongs to a task, and texts have none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(sti: Sti, folder: Path, store: Path, arguments: list[str], sentence: str) -> None:
    before = sorted(os.listdir(store))
    result = sti("profile-importance", store, *(one.format(data=folder / "data", folder=folder) for one in arguments))
    assert (result.status, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert " error: " in line
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(line)
    assert sorted(os.listdir(store)) == before


def test_stores_that_will_not_do(sti: Sti, folder: Path, tmp_path: Path) -> None:
    def refused(store: Path) -> str:
        result = sti("profile-importance", store, *EXHAUSTIVE, "--dataset", folder / "data")
        assert (result.status, len(result.err.splitlines())) == (2, 1)
        return result.err

    assert "is not a store" in refused(folder / "model")
    bare = shutil.copytree(folder / "store", tmp_path / "bare", ignore=shutil.ignore_patterns(*TOKENIZER_FILES))
    assert "has no tokenizer" in refused(bare)
    shard_checkpoint(folder / "model", tmp_path / "small", quantizer="gobo", full=False)
    assert "has no full weights" in refused(tmp_path / "small")
    other = checkpoint(BertForMaskedLM, tmp_path / "masked")
    shard_checkpoint(other, tmp_path / "masked-store", quantizer="gobo")
    assert "needs a model for sequence classification, not a BertForMaskedLM" in refused(tmp_path / "masked-store")


def test_without_the_extra(sti: Sti, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("datasets", "evaluate", "matplotlib.figure"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            result = sti("profile-importance", store, *EXHAUSTIVE, "--dataset", folder / "data")
        assert result.status == 2
        assert 'which is not installed: pip install "sti-hf[eval]"' in result.err

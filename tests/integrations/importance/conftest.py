from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
)

from sti_hf import shard_checkpoint
from sti_hf.integrations.importance import profile_importance
from tests.integrations.checkpoints import checkpoint
from tests.tasks import centred, predicted_labels, sentences, write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned checkpoint `model`, its `store`, and `data` that it is mostly right about. Not to be changed."""
    folder = tmp_path_factory.mktemp("importance")
    source = checkpoint(BertForSequenceClassification, folder / "model")
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(source),
        AutoTokenizer.from_pretrained(source),
    )
    centred(model, tokenizer).save_pretrained(source)
    texts = sentences(40)
    labels = predicted_labels(model, tokenizer, texts, wrong=6)
    write_dataset(folder / "data", "validation", {"sentence": texts, "label": labels})
    write_dataset(folder / "data", "test", {"sentence": texts, "label": [-1] * len(texts)})
    shard_checkpoint(source, folder / "store", quantizer="gobo")
    return folder


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Path:
    """A store of one's own."""
    return shutil.copytree(folder / "store", tmp_path / "store")


@pytest.fixture(scope="module")
def profiled(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was profiled exhaustively as "sst2". Not to be changed."""
    path = shutil.copytree(folder / "store", tmp_path_factory.mktemp("profiled") / "store")
    profile_importance(path, "sst2", method="exhaustive", dataset=str(folder / "data"), base_bits=2)
    return path

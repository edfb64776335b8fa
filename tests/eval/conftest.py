"""A tiny fine-tuned classifier, its store and its data, for the evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from sti_hf import ShardStore, shard_checkpoint
from tests.integrations.checkpoints import checkpoint
from tests.tasks import centred, predicted_labels, sentences, write_dataset


class TinyTask(NamedTuple):
    """A checkpoint, its store, and a folder with data that it is mostly right about. Not to be changed."""

    checkpoint: Path
    store: ShardStore
    data: Path


@pytest.fixture(scope="session")
def tiny_sst2(tmp_path_factory: pytest.TempPathFactory) -> TinyTask:
    """Task "sst2" with 40 sentences for validation."""
    folder = tmp_path_factory.mktemp("sst2")
    source = checkpoint(BertForSequenceClassification, folder / "model")
    model = AutoModelForSequenceClassification.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    centred(model, tokenizer).save_pretrained(source)
    texts = sentences(40)
    labels = predicted_labels(model, tokenizer, texts, wrong=6)
    data = write_dataset(folder / "data", "validation", {"sentence": texts, "label": labels})
    return TinyTask(source, shard_checkpoint(source, folder / "store", quantizer="gobo"), data)

"""Tiny tasks: sentences, labels, and models that are right about most of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from sti_hf.profiling.examples import Examples, tokenize
from sti_hf.profiling.metrics import load_metric
from sti_hf.profiling.tasks import Task, get_task
from tests.integrations.checkpoints import checkpoint
from tests.models import VOCABULARY

TASK = Task("tiny", ("text",), lambda predictions, references: {"accuracy": float((predictions == references).mean())})


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of words that the tiny checkpoints' tokenizer knows, 3 to 12 of them."""
    random = np.random.default_rng(seed)
    return [
        " ".join(f"word{word}" for word in random.integers(12, VOCABULARY, random.integers(3, 13)))
        for _ in range(count)
    ]


def centred(model: Any, tokenizer: Any) -> Any:
    """The model, its head's bias (if it has one) moved so that it says either class for half of some sentences."""
    margin = np.diff(_logits(model, tokenizer, sentences(64, seed=9)))
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    if head.bias is not None:
        with torch.no_grad():
            head.bias[1] -= float(np.median(margin))
    return model


def predicted_labels(model: Any, tokenizer: Any, texts: list[str], wrong: int = 0) -> list[int]:
    """What a model says of texts. The first ones are then made wrong."""
    labels = _logits(model, tokenizer, texts).argmax(axis=1)
    labels[:wrong] = 1 - labels[:wrong]
    return labels.tolist()


def _logits(model: Any, tokenizer: Any, texts: list[str]) -> np.ndarray:
    examples = Examples(tuple((text,) for text in texts), np.empty(0), np.arange(len(texts)))
    logits = np.empty((len(texts), model.config.num_labels))
    with torch.no_grad():
        for batch in tokenize(examples, tokenizer, model=model):
            logits[batch.places] = model(**batch.inputs).logits.numpy()
    return logits


def write_dataset(folder: Path, split: str, rows: dict[str, list[Any]]) -> Path:
    """A dataset's split as JSON lines in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(dict(zip(rows, values))) for values in zip(*rows.values())]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def task_for(model_class: type[PreTrainedModel], folder: Path, train: int) -> tuple[Path, Path]:
    """A tiny checkpoint that is right about its data, and the data: task "sst2", `train` sentences to train on."""
    source = checkpoint(model_class, folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = centred(AutoModelForSequenceClassification.from_pretrained(source), tokenizer)
    model.save_pretrained(source)
    for split, count, seed in (("train", train, 1), ("validation", 20, 0)):
        texts = sentences(count, seed)
        write_dataset(folder / "data", split, {"sentence": texts, "label": predicted_labels(model, tokenizer, texts)})
    return source, folder / "data"


def use_local_metric(patch: pytest.MonkeyPatch, *modules: str) -> None:
    """These modules load the metric of "sst2" from the checkout: asking the Hub first takes seconds."""
    metric = load_metric(get_task("sst2"))
    for module in modules:
        patch.setattr(f"{module}.load_metric", lambda task, path=None: metric)

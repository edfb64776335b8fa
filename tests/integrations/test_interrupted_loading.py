"""A load that is interrupted leaves nothing behind: no thread, no descriptor, nothing changed for others."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from eval import accounting
from tests.integrations.checkpoints import STOCK
from tests.models import tiny_inputs
from tests.runtime.interruptions import interrupted_at, lines_of

GLOBALS = (nn.Module.register_parameter, nn.init.normal_, torch.empty)


def load(store: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(store, sti_config=STOCK)


def threads_and_descriptors() -> tuple[int, int]:
    return accounting.threads(), accounting.descriptors()


def test_every_line_of_a_load(classifier_store: Path) -> None:
    model = load(classifier_store)
    inputs = tiny_inputs(model)
    expected = model(**inputs).logits
    del model
    lines = lines_of(lambda: load(classifier_store))
    assert len(lines) > 300
    gc.collect()
    before, hits = threads_and_descriptors(), 0
    for index, line in enumerate(lines):
        hits += interrupted_at(line, lambda: load(classifier_store))
        assert (nn.Module.register_parameter, nn.init.normal_, torch.empty) == GLOBALS, line
        assert torch.get_default_dtype() == torch.float32
        assert not nn.Linear(4, 4).weight.is_meta, line
        if index % 50 == 0 or index == len(lines) - 1:
            gc.collect()  # a traceback may hold what was made
            assert all(now <= then for now, then in zip(threads_and_descriptors(), before)), line
    assert hits > 0.8 * len(lines)
    model = load(classifier_store)
    assert torch.equal(model(**inputs).logits, expected)
    model.sti.close()

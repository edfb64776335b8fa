"""The training split as what a phase trains on, and what its checkpoints are chosen by."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sti_hf.profiling.examples import Examples, load_examples, longest_input
from sti_hf.profiling.tasks import Task

SPLIT = "train"
HELD_OUT_SHARE = 10
"""At most one example in so many is held out."""


def load_training(
    task: Task, dataset: str | None, *, samples: int | None, held_out: int, seed: int
) -> tuple[Examples, Examples]:
    """The training split's examples to train on, and those that are held out, chosen at random by `seed`.

    Raises `ValueError` with one sentence where the dataset has no such split, or too few examples.
    """
    examples = load_examples(task, dataset, split=SPLIT, samples=samples, seed=seed)
    count = min(held_out, len(examples) // HELD_OUT_SHARE)
    if count == 0:
        raise ValueError(f"The training split has {len(examples)} examples: that is too few to train on.")
    shuffled = np.random.default_rng(seed).permutation(len(examples))
    return select(examples, np.sort(shuffled[count:])), select(examples, np.sort(shuffled[:count]))


def select(examples: Examples, places: Sequence[int] | np.ndarray) -> Examples:
    """Some of the examples."""
    texts = tuple(examples.texts[place] for place in places)
    return replace(examples, texts=texts, labels=examples.labels[places], rows=examples.rows[places])


def encoded(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_length: int
) -> list[dict[str, Any]]:
    """What the model takes of each example, unpadded and without labels, cut to `max_length` tokens or fewer."""
    longest = min(max_length, longest_input(model))
    columns: Any = tokenizer(*map(list, zip(*examples.texts)), truncation=True, max_length=longest)
    names = [name for name in columns if name in inspect.signature(model.forward).parameters]
    return [{name: columns[name][place] for name in names} for place in range(len(examples))]

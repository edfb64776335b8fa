"""A task's examples: from a dataset to batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from sti_hf.errors import SourceError
from sti_hf.model import get_architecture
from sti_hf.profiling.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PARTS = ("all", "first", "second")
"""A whole split, or its shuffled halves: profile on one and report on the other."""

MISSING_EXTRA = 'This needs {}, which is not installed: pip install "sti-hf[eval]".'


@dataclass(frozen=True)
class Examples:
    """Examples of a task.

    - `texts[i]`: the text of example i, or the two of a pair.
    - `labels` `[n]`: int64 classes, or float32 of a regression; `[0]` where there are none.
    - `rows` int64 `[n]`: which rows of the split these are.
    - `label_names`: of the dataset's classes, in order; empty where it does not name them.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: np.ndarray
    rows: np.ndarray
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return len(self.labels) > 0


@dataclass(frozen=True)
class Batch:
    """Some examples as a model takes them.

    - `inputs`: int64 `[batch, tokens]` each, padded: `input_ids`, `attention_mask` and what else the model takes.
    - `places` int64 `[batch]`: where the examples are in the `Examples` that they come from.
    """

    inputs: dict[str, Tensor]
    places: np.ndarray


def load_examples(
    task: Task,
    dataset: str | None = None,
    *,
    split: str | None = None,
    part: str = "all",
    samples: int | None = None,
    seed: int = 0,
    labelled: bool = True,
) -> Examples:
    """Examples of a task from a dataset on the Hub, or in a folder.

    Args:
        task: what the columns are called.
        dataset: id or folder; None: the task's own.
        split: None: the task's own.
        part: "all" of the split, or the "first" or "second" half of it, after a shuffle by `seed`: halves of one seed
            have no example in common.
        samples: at most so many of these, the same ones each time; None: all.
        seed: of the shuffle.
        labelled: labels are needed; else examples that have none will do.

    Raises `ValueError` or `OSError` with one sentence where the dataset is not there, lacks a column of the task, has
    no examples, or none with labels.
    """
    check_choice(part, samples)
    source, split = dataset or task.dataset, split or task.split
    data = load_split(source, task.dataset_config, split)
    needed = (*task.columns, task.label) if labelled else task.columns
    missing = [column for column in needed if column not in data.column_names]
    if missing:
        raise SourceError(
            f"Split {split} of {source} has no column {missing[0]!r}, which task {task.name} needs; its columns are "
            f"{', '.join(data.column_names)}."
        )
    rows = chosen_rows(len(data), part, samples, seed)
    if len(rows) == 0:
        raise SourceError(f"Split {split} of {source} has no examples in part {part!r}; choose another.")
    chosen = data.select(rows)
    texts = tuple(zip(*(chosen[column] for column in task.columns)))
    names = tuple(getattr(data.features.get(task.label), "names", None) or ())
    try:
        labels = _labels(task, chosen, f"Split {split} of {source}")
    except ValueError:
        if labelled:
            raise
        labels = np.empty(0)
    return Examples(texts, labels, rows, names)


def tokenize(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 32,
    max_length: int = 128,
    model: PreTrainedModel | None = None,
) -> list[Batch]:
    """Batches of examples of about the same length, the shortest first, longer texts cut to `max_length` tokens.

    With `model`, batches have no inputs that its forward does not take, and no text is longer than it takes.
    """
    return batches_by_length(
        examples.texts,
        tokenizer,
        lambda lengths: range(batch_size, len(lengths), batch_size),
        max_length=max_length,
        model=model,
    )


def batches_by_length(
    texts: Sequence[tuple[str, ...]],
    tokenizer: PreTrainedTokenizerBase,
    cuts: Callable[[np.ndarray], Sequence[int]],
    *,
    max_length: int,
    model: PreTrainedModel | None = None,
) -> list[Batch]:
    """Texts, or pairs of texts, in batches, the shortest first; `max_length` and `model` as `tokenize` takes them.

    `cuts` is given the texts' lengths in tokens, ascending, int64 `[n]`, and says where a batch ends and the next
    begins.
    """
    if model is not None:
        max_length = min(max_length, longest_input(model))
    encoded: Any = tokenizer(*map(list, zip(*texts)), truncation=True, max_length=max_length)
    names = [name for name in encoded if model is None or name in inspect.signature(model.forward).parameters]
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    order = lengths.argsort(kind="stable")
    batches = []
    for places in np.split(order, cuts(lengths[order])):
        padded = tokenizer.pad({name: [encoded[name][i] for i in places] for name in names}, return_tensors="pt")
        batches.append(Batch({name: padded[name] for name in names}, places))
    return batches


def longest_input(model: PreTrainedModel) -> int:
    """Tokens of the longest input that the model's position embeddings admit."""
    return get_architecture(model.config).longest_input(model.config)


def model_order(task: Task, examples: Examples, config: PreTrainedConfig) -> Tensor | None:
    """The model's output for each of the dataset's classes, int64 `[classes]`; None where they are the same.

    Models fine-tuned elsewhere may order the classes otherwise (MNLI's do): names tell, where both have them.
    """
    by_name = {str(name).lower(): int(index) for name, index in (config.label2id or {}).items()}
    names = [name.lower() for name in examples.label_names]
    if task.is_regression or len(set(names)) < task.num_labels or set(names) != set(by_name):
        return None
    order = [by_name[name] for name in names]
    return None if order == sorted(order) else torch.tensor(order)


def load_split(source: str, config: str | None, split: str) -> Any:
    """A split of a dataset on the Hub or in a folder. Raises `ValueError` where it cannot be loaded."""
    try:
        import datasets
    except ImportError as error:
        raise SourceError(MISSING_EXTRA.format("datasets")) from error
    shown = not datasets.are_progress_bars_disabled()
    if not logging.is_progress_bar_enabled():
        datasets.disable_progress_bars()
    try:
        if config is not None and datasets.get_dataset_config_names(source) == ["default"]:
            config = None  # a folder with one task's files
        return datasets.load_dataset(source, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(f"The dataset {source} cannot be loaded: {' '.join(str(error).split())}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def check_choice(part: str, samples: int | None) -> None:
    """Raises `ValueError` where no examples can be chosen so."""
    if part not in PARTS:
        raise SourceError(f"part must be one of {', '.join(PARTS)}, not {part!r}.")
    if samples is not None and samples < 1:
        raise SourceError(f"samples must be at least 1, not {samples!r}.")


def chosen_rows(count: int, part: str, samples: int | None, seed: int) -> np.ndarray:
    """Rows int64 `[n]` of `count`, ascending: at most `samples` of a part, as `load_examples` chooses them."""
    shuffled = np.random.default_rng(seed).permutation(count)
    half = count // 2
    chosen = {"all": shuffled, "first": shuffled[:half], "second": shuffled[half:]}[part]
    return np.sort(chosen[:samples])


def _labels(task: Task, data: Any, what: str) -> np.ndarray:
    if task.label not in data.column_names:
        raise SourceError(f"{what} has no column {task.label!r}.")
    try:
        labels: np.ndarray = np.array(data[task.label][:], dtype=np.float32 if task.is_regression else np.int64)
    except (TypeError, ValueError) as error:
        raise SourceError(
            f"{what} has labels that are no {'numbers' if task.is_regression else 'classes'}."
        ) from error
    if not task.is_regression and (labels < 0).any():
        raise SourceError(f"{what} has no labels (they are -1, as in GLUE's test sets); choose a split that has them.")
    if not task.is_regression and (labels >= task.num_labels).any():
        raise SourceError(f"{what} has the label {labels.max()}, and task {task.name} has {task.num_labels} labels.")
    return labels

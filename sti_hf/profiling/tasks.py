"""What a task is: columns of a dataset, and the metric that says how well a model does on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sti_hf.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Metric = Callable[[np.ndarray, np.ndarray], dict[str, float]]
"""Predictions and references, `[n]` each (int64 class indices, or float32 where the task is a regression), to the
metric's values by key."""

GLUE = "nyu-mll/glue"


@dataclass(frozen=True)
class Task:
    """A task of texts with a label: a classification, or with `num_labels` 1 a regression.

    Args:
        name: what it is called in files and messages.
        columns: of the dataset that hold the text, or the two texts of a pair.
        metric: what `evaluate.load` takes: an id on the Hub or a folder; or a function of predictions and references.
            None: texts without labels, which is enough for the method "effects" and fits any head.
        keys: of the metric that are reported; the first leads: importance is measured with it. Higher is better.
        num_labels: number of classes that the model's head tells apart; 1: a regression.
        label: the dataset's column with the label.
        dataset: its id on the Hub, or its folder.
        dataset_config: name of the dataset's configuration, None where it has only one.
        metric_config: name of the metric's configuration, None where it has only one.
        split: of the dataset, on which models are compared.
    """

    name: str
    columns: tuple[str, ...]
    metric: str | Metric | None
    keys: tuple[str, ...] = ("accuracy",)
    num_labels: int = 2
    label: str = "label"
    dataset: str = GLUE
    dataset_config: str | None = None
    metric_config: str | None = None
    split: str = "validation"

    def __post_init__(self) -> None:
        if len(self.columns) not in (1, 2):
            raise ConfigurationError(f"A task has one text column or two, not {list(self.columns)}.")
        if not self.keys:
            raise ConfigurationError(f"Task {self.name} needs the key of a metric.")
        if self.num_labels < 1:
            raise ConfigurationError(f"num_labels must be at least 1, not {self.num_labels!r}.")

    @property
    def leading(self) -> str:
        """Key of the metric's value that decides."""
        return self.keys[0]

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number and no class."""
        return self.num_labels == 1

    def check_head(self, config: PreTrainedConfig) -> None:
        """Raises `ValueError` where the head of the model with this configuration does not fit the task."""
        architecture = (config.architectures or ["model"])[0]
        if not architecture.endswith("ForSequenceClassification"):
            raise ConfigurationError(
                f"Task {self.name} needs a model for sequence classification, not a {architecture}."
            )
        if config.num_labels != self.num_labels:
            wanted = "1 output (a regression)" if self.is_regression else f"{self.num_labels} labels"
            raise ConfigurationError(
                f"Task {self.name} has {wanted}, and the head of this {architecture} has {config.num_labels}; "
                "take a model that was fine-tuned for the task."
            )


def _glue(name: str, columns: Sequence[str], **fields: object) -> Task:
    defaults = {"metric": "glue", "dataset_config": name, "metric_config": name}
    return Task(name, tuple(columns), **{**defaults, **fields})  # type: ignore[arg-type]


_PAIR = ("sentence1", "sentence2")
_NLI = ("premise", "hypothesis")

GLUE_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue("cola", ("sentence",), keys=("matthews_correlation",)),
        _glue("mnli", _NLI, num_labels=3, split="validation_matched"),
        _glue("mnli_mismatched", _NLI, num_labels=3, dataset_config="mnli", split="validation_mismatched"),
        # Accuracy leads: whoever always says yes has an F1 of 0.8 on MRPC.
        _glue("mrpc", _PAIR, keys=("accuracy", "f1")),
        _glue("qnli", ("question", "sentence")),
        _glue("qqp", ("question1", "question2"), keys=("accuracy", "f1")),
        _glue("rte", _PAIR),
        _glue("sst2", ("sentence",)),
        _glue("stsb", _PAIR, keys=("pearson", "spearmanr"), num_labels=1),
        _glue("wnli", _PAIR),
    )
}
"""The tasks of GLUE (Wang et al., 2019), with the columns and configurations of `nyu-mll/glue`."""


def get_task(name: str) -> Task:
    """The GLUE task called `name`; raises `ValueError` with the names there are."""
    if name not in GLUE_TASKS:
        raise ConfigurationError(
            f"There is no task {name!r}; choose one of {', '.join(GLUE_TASKS)}, or make your own Task."
        )
    return GLUE_TASKS[name]

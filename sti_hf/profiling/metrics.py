"""How well a model does on a task: its metric, and the loss, which tells apart what the metric calls equal."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import sti_hf
from sti_hf.errors import ConfigurationError
from sti_hf.profiling.examples import MISSING_EXTRA
from sti_hf.profiling.tasks import Metric, Task


@dataclass(frozen=True)
class Score:
    """What a model's logits are worth.

    `value` is the task's leading metric (an undefined one, such as the correlation of a constant, counts as 0);
    `metrics` has all of its keys; `loss` is the mean cross-entropy, or mean squared error of a regression.
    """

    value: float
    loss: float
    metrics: dict[str, float]


def load_metric(task: Task, path: str | Path | None = None) -> Metric:
    """The task's metric: from `path` (what `evaluate.load` takes), else from the Hub, else from this checkout.

    The metric of GLUE is on the Hub and in a checkout's `eval/metrics/glue`, with the same keys. Raises `ValueError`
    with one sentence where none of these is there, or it has not the task's keys.
    """
    if callable(task.metric) and path is None:
        return _with_keys(task, task.metric)
    if task.metric is None and path is None:
        raise ConfigurationError(f"Task {task.name} has no metric; give it one, or choose what needs no labels.")
    try:
        import evaluate
    except ImportError as error:
        raise ConfigurationError(MISSING_EXTRA.format("evaluate")) from error
    sources = [str(path)] if path is not None else [str(task.metric), *_in_checkout(str(task.metric))]
    errors: list[str] = []
    for source in sources:
        try:
            loaded = evaluate.load(source, task.metric_config, keep_in_memory=True)
        except (OSError, ImportError, KeyError, ValueError) as error:
            errors.append(" ".join(str(error).split()))
        else:
            return _with_keys(task, partial(_computed, loaded))
    raise ConfigurationError(
        f"The metric {sources[0]!r} of task {task.name} cannot be loaded ({errors[0]}); connect to the Hub, or name "
        "the folder of an evaluate metric (a checkout of sti_hf has GLUE's in eval/metrics/glue)."
    )


def score(task: Task, metric: Metric, logits: Tensor, labels: np.ndarray, order: Tensor | None = None) -> Score:
    """The score of logits `[n, num_labels]` for labels `[n]`.

    `order` int64 `[num_labels]` is the model's output for each of the dataset's classes, where they differ.
    """
    logits = logits.double() if order is None else logits.double()[:, order]
    references = torch.from_numpy(labels)
    if task.is_regression:
        predictions = logits.flatten()
        loss = F.mse_loss(predictions, references.double())
        metrics = metric(predictions.float().numpy(), labels)
    else:
        loss = F.cross_entropy(logits, references)
        metrics = metric(logits.argmax(1).numpy(), labels)
    value = metrics[task.leading]
    return Score(value if np.isfinite(value) else 0.0, float(loss), metrics)


def chance(task: Task, metric: Metric, labels: np.ndarray) -> float:
    """What an answer that does not look at the text scores at best: always the same class; 0 for a regression."""
    if task.is_regression:
        return 0.0
    constants = [metric(np.full_like(labels, label), labels)[task.leading] for label in range(task.num_labels)]
    return max(value if np.isfinite(value) else 0.0 for value in constants)


def _in_checkout(name: str) -> list[str]:
    """The folder of a metric in the checkout that this package runs from, if it does."""
    folder = Path(sti_hf.__file__).resolve().parents[1] / "eval" / "metrics" / name
    return [str(folder)] if (folder / f"{folder.name}.py").is_file() else []


def _computed(loaded: object, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of correlations of constants, which `score` takes for 0
        values = loaded.compute(predictions=predictions, references=references)  # type: ignore[attr-defined]
    return {key: float(value) for key, value in values.items()}


def _with_keys(task: Task, metric: Metric) -> Metric:
    """The metric with the task's keys and no others."""

    def compute(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        values = metric(predictions, references)
        missing = [key for key in task.keys if key not in values]
        if missing:
            raise ConfigurationError(
                f"The metric of task {task.name} has no {missing[0]!r}; it has {', '.join(values)}."
            )
        return {key: float(values[key]) for key in task.keys}

    return compute

"""A task's examples, ready for a model: its logits to a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from sti_hf.forking import cached_property
from sti_hf.profiling.examples import Batch, Examples, model_order, tokenize
from sti_hf.profiling.metrics import Score, chance, score
from sti_hf.profiling.tasks import Metric, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Scored(Protocol):
    """What models of one head are compared by: inputs, and what logits for these are worth."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    @property
    def leading(self) -> str:
        """Name of the metric that decides, 0 to 1, higher is better."""
        ...

    @property
    def recorded(self) -> tuple[str, ...]:
        """Other metrics that are put down for every submodel; they are always finite."""
        ...

    @property
    def batches(self) -> Sequence[Batch]:
        """The inputs."""
        ...

    @property
    def chance(self) -> float:
        """What answering without a look at the text scores at best."""
        ...

    def score(self, logits_of: Callable[[int], Tensor]) -> Score:
        """The score of what gives the logits of a batch, by its index."""
        ...


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What models are compared by that are fine-tuned for a task.

    `order` int64 `[num_labels]`: the model's output for each of the dataset's classes, None where they are the same.
    """

    task: Task
    metric: Metric
    examples: Examples
    batches: Sequence[Batch]
    order: Tensor | None = None

    @classmethod
    def prepare(
        cls,
        task: Task,
        metric: Metric,
        examples: Examples,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 32,
        max_length: int = 128,
    ) -> Evaluation:
        """The evaluation of models like `model`, of the same configuration. Raises `ValueError` where its head does
        not fit the task."""
        task.check_head(model.config)
        batches = tokenize(examples, tokenizer, batch_size=batch_size, max_length=max_length, model=model)
        return cls(task, metric, examples, batches, model_order(task, examples, model.config))

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    @property
    def leading(self) -> str:
        """Name of the task's leading metric."""
        return self.task.leading

    @property
    def recorded(self) -> tuple[str, ...]:
        """None: metrics of GLUE are undefined for some answers."""
        return ()

    def score(self, logits_of: Callable[[int], Tensor]) -> Score:
        """The score of what gives the logits `[batch, num_labels]` of a batch, by its index."""
        logits = torch.empty(len(self.examples), self.task.num_labels)
        for index, batch in enumerate(self.batches):
            logits[batch.places] = logits_of(index)
        return score(self.task, self.metric, logits, self.examples.labels, self.order)

    @cached_property
    def chance(self) -> float:
        """What answering without a look at the text scores at best."""
        return chance(self.task, self.metric, self.examples.labels)

"""A task's examples, ready for a model: its logits to a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sti_hf.forking import cached_property
from sti_hf.profiling.examples import Batch, Examples, model_order, tokenize
from sti_hf.profiling.metrics import Score, chance, score
from sti_hf.profiling.tasks import Metric, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What models of one head are compared by.

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

"""The loss of a task's labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sti_hf.profiling.examples import Batch, Examples
from sti_hf.profiling.tasks import Task


def labelled_loss(task: Task, examples: Examples, order: Tensor | None) -> Callable[[Tensor, Batch], Tensor]:
    """What gives the loss `[batch]` of logits `[batch, num_labels]` for a batch of the examples: cross-entropy, or the
    squared error of a regression.

    `order` int64 `[num_labels]` is the model's output for each of the dataset's classes, where they differ.
    """
    labels = torch.from_numpy(examples.labels)
    if order is not None:
        labels = order[labels]

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        of_batch = labels[torch.from_numpy(batch.places)].to(logits.device)
        if task.is_regression:
            return F.mse_loss(logits.flatten(), of_batch, reduction="none")
        return F.cross_entropy(logits, of_batch, reduction="none")

    return loss

"""What a submodel's outputs are compared by with those of its teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def logit_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the teacher's classes, or the mean squared difference where there is one output
    (a regression): logits `[batch, num_labels]` both, mean over the batch. 0 where they agree."""
    student, teacher = student.float(), teacher.float()
    if student.shape[-1] == 1:
        return F.mse_loss(student, teacher)
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")


def state_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean squared difference over all tokens that are no padding, summed over the states, of which the teacher may
    have more: `[batch, tokens, hidden]` each, `mask` `[batch, tokens]` 1 for a token."""
    tokens = mask.bool()
    losses = [F.mse_loss(one[tokens].float(), other[tokens].float()) for one, other in zip(student, teacher)]
    return torch.stack(losses).sum()

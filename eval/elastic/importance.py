"""What heads and neurons are worth, to the first order of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sti_hf.model import get_architecture
from sti_hf.profiling.examples import Batch


@dataclass(frozen=True)
class FirstOrderImportance:
    """By how much the loss would change, to the first order, without a head or a neuron: `heads` float32 `[N, M]`,
    `neurons` float32 `[N, FFN size]`, mean over examples."""

    heads: Tensor
    neurons: Tensor


def first_order_importance(
    model: PreTrainedModel, batches: Iterable[Batch], loss: Callable[[Tensor, Batch], Tensor]
) -> FirstOrderImportance:
    """Measures the importance of all heads and neurons at once (DynaBERT, section 2.1; Michel et al., NeurIPS 2019).

    Heads and neurons are multiplied by masks of ones; the absolute gradients of each example's loss with respect to
    them are summed up.

    Args:
        model: as it was fine-tuned; it is left as it was.
        batches: of examples of its task.
        loss: of the model's logits `[batch, num_labels]` for a batch: `[batch]`.
    """
    grid = get_architecture(model.config).grid(model.config)
    linears = get_architecture(model.config).linears(model)
    heads, neurons = grid.slices, linears[0]["down"].in_features
    masked = [(layer["o"], heads) for layer in linears] + [(layer["down"], neurons) for layer in linears]
    masks: dict[nn.Module, Tensor] = {}
    handles = [linear.register_forward_pre_hook(_masking(masks, count)) for linear, count in masked]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    totals = [torch.zeros(count) for _, count in masked]
    examples = 0
    model.requires_grad_(False)
    try:
        for batch in batches:
            inputs = {name: values.to(model.device) for name, values in batch.inputs.items()}
            loss(model(**inputs).logits, batch).sum().backward()
            for total, (linear, _) in zip(totals, masked):
                gradient = masks[linear].grad
                assert gradient is not None
                total += gradient.abs().sum((0, 1)).cpu()
            examples += len(batch.places)
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trained:
            parameter.requires_grad_()
    of_layers = torch.split(torch.cat(totals) / max(examples, 1), [heads * len(linears), neurons * len(linears)])
    return FirstOrderImportance(*(values.view(len(linears), -1) for values in of_layers))


def _masking(masks: dict[nn.Module, Tensor], count: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor]]:
    """A hook that multiplies a linear's input, `count` equal blocks of features, by a mask for each example."""

    def multiply(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        (x,) = args
        masks[module] = torch.ones(len(x), 1, count, device=x.device, requires_grad=True)
        return (x * masks[module].repeat_interleave(x.shape[-1] // count, dim=-1),)

    return multiply

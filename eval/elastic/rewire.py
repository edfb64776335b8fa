"""Heads and neurons in order of importance, so that the first m slices of a layer are its best m."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eval.elastic.importance import FirstOrderImportance
from sti_hf.model import get_architecture
from sti_hf.model.architecture import HEAD_MATRICES


@torch.no_grad()
def rewire(model: PreTrainedModel, importance: FirstOrderImportance) -> None:
    """Puts the heads and the FFN neurons of every layer in order, in place (DynaBERT, section 2.1).

    Slice i then has the i-th head and the i-th block of neurons, of which there are as many blocks as heads. The model
    computes what it did before. Where all layers share a table with a column for every head (MPNet's position biases),
    heads get one order for all of them, by the sum of their importance over the layers.
    """
    architecture = get_architecture(model.config)
    heads = importance.heads
    if architecture.head_tables:
        heads = heads.sum(0, keepdim=True).expand_as(heads)
    head_order = heads.argsort(dim=1, descending=True, stable=True)
    neuron_order = importance.neurons.argsort(dim=1, descending=True, stable=True)
    for layer, linears in enumerate(architecture.linears(model)):
        for matrix in architecture.matrices:
            linear = linears[matrix.name]
            size = linear.in_features if matrix.by_columns else linear.out_features
            order = _of_features(head_order[layer] if matrix.name in HEAD_MATRICES else neuron_order[layer], size)
            order = order.to(linear.weight.device)
            linear.weight.copy_(linear.weight[:, order] if matrix.by_columns else linear.weight[order])
            if linear.bias is not None and not matrix.by_columns:
                linear.bias.copy_(linear.bias[order])
    for path in architecture.head_tables:
        table = model.base_model.get_submodule(path).get_parameter("weight")
        table.copy_(table[:, head_order[0].to(table.device)])


def _of_features(order: Tensor, size: int) -> Tensor:
    """The order of `size` features, of which each item of `order` has an equal block: int64 `[size]`."""
    block = size // len(order)
    return (order[:, None] * block + torch.arange(block)).flatten()

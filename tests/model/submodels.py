"""Submodels of stock models, made in two independent ways."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from sti_hf.model import get_architecture
from sti_hf.model.fused import split_fused
from sti_hf.shards.partition import join_layer, permute_bias, split_layer


def widths_of(model: PreTrainedModel) -> range:
    """Numbers of slices that submodels of a model have, M the last."""
    return get_architecture(model.config).grid(model.config).widths


def random_orders(model: PreTrainedModel, seed: int = 0) -> list[list[int]]:
    """A slice order for every layer, each another one; where slices are not droppable, the one that there is."""
    grid = get_architecture(model.config).grid(model.config)
    if not grid.droppable:
        return [list(range(grid.slices))] * grid.layers
    rng = random.Random(seed)
    return [rng.sample(range(grid.slices), grid.slices) for _ in range(grid.layers)]


def cut_down(model: PreTrainedModel, layers: int, slices: int, orders: Sequence[Sequence[int]]) -> PreTrainedModel:
    """Copy of `model` with the first `layers` layers, whose linears have the first `slices` slices in `orders`."""
    model = copy.deepcopy(model)
    architecture = get_architecture(model.config)
    grid = architecture.grid(model.config)
    keep_layers(model, layers)
    split_fused(model, architecture)
    for layer, order in zip(model.base_model.get_submodule(architecture.layers), orders, strict=False):
        linears = {matrix.name: layer.get_submodule(matrix.module) for matrix in architecture.matrices}
        weights = {name: linear.weight for name, linear in linears.items()}
        stored = split_layer(weights, architecture.matrices, grid, order)
        joined = join_layer(stored[:slices], architecture.matrices, grid)
        for matrix in architecture.matrices:
            stock = linears[matrix.name].bias
            state = {"weight": joined[matrix.name]}
            if stock is not None:
                state["bias"] = permute_bias(stock, grid, matrix.name, order[:slices])
            smaller = nn.Linear(*reversed(joined[matrix.name].shape), bias=stock is not None)
            smaller.load_state_dict(state)
            layer.set_submodule(matrix.module, smaller)
        if not grid.droppable:
            continue
        architecture.prepare_layer(layer, slices)
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, heads=order[:slices]: architecture.layer_inputs(args, kwargs, heads),
            with_kwargs=True,
        )
    return model.eval()


@torch.no_grad()
def silence(model: PreTrainedModel, layers: int, slices: int, orders: Sequence[Sequence[int]]) -> PreTrainedModel:
    """Copy of `model` without the other layers, in which the other heads and neurons are multiplied by zero."""
    model = copy.deepcopy(model)
    architecture = get_architecture(model.config)
    keep_layers(model, layers)
    split_fused(model, architecture)
    for layer, order in zip(model.base_model.get_submodule(architecture.layers), orders, strict=False):
        for matrix in architecture.matrices:
            if matrix.name in ("o", "down"):
                blocks = layer.get_submodule(matrix.module).weight.unflatten(1, (len(order), -1))
                blocks[:, list(order[slices:])] = 0
    return model


def keep_layers(model: PreTrainedModel, layers: int) -> None:
    """Drop all layers but the first ones from the model's `nn.ModuleList`."""
    path = get_architecture(model.config).layers
    model.base_model.set_submodule(path, model.base_model.get_submodule(path)[:layers])

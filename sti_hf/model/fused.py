"""Linears that compute several projections at once, and transposed ones (Transformers' `Conv1D`), as one `nn.Linear`
for each projection and back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sti_hf.model.architecture import Architecture, Fused

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FusedLinear(nn.Module):
    """What one linear computes, as an `nn.Linear` for each projection: their outputs one behind the other, or, where
    they are fused by head, those of every head.

    `head_size` is the number of rows of a head where they are fused by head, else 0; `transposed` whether the one
    linear was a `Conv1D`.
    """

    def __init__(self, parts: dict[str, nn.Module], head_size: int, transposed: bool) -> None:
        super().__init__()
        self.head_size, self.transposed = head_size, transposed
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[..., in_features]` to `[..., the sum of all out_features]`."""
        outputs = [part(x) for part in self.children()]
        if not self.head_size:
            return torch.cat(outputs, dim=-1)
        by_head = [output.unflatten(-1, (-1, self.head_size)) for output in outputs]
        return torch.cat(by_head, dim=-1).flatten(-2)


def split_fused(model: PreTrainedModel, architecture: Architecture) -> None:
    """Makes each fused linear of a model one for each of its projections: views of its weight; only of one that is
    fused by head they are copies."""
    for layer, fused in _fused_of(model, architecture):
        linear = layer.get_submodule(fused.module)
        if not isinstance(linear, FusedLinear):
            sizes = architecture.fused_sizes(model.config, fused)
            head_size = architecture.head_size(model.config) if fused.by_head else 0
            layer.set_submodule(fused.module, _split(linear, sizes, head_size))


def join_fused(model: PreTrainedModel, architecture: Architecture) -> None:
    """Makes fused linears whole again."""
    for layer, fused in _fused_of(model, architecture):
        parts = layer.get_submodule(fused.module)
        if isinstance(parts, FusedLinear):
            layer.set_submodule(fused.module, _joined(parts))


@contextmanager
def in_parts(model: PreTrainedModel, architecture: Architecture) -> Iterator[None]:
    """Splits the fused linears of a model for a while."""
    split_fused(model, architecture)
    try:
        yield
    finally:
        join_fused(model, architecture)


def _fused_of(model: PreTrainedModel, architecture: Architecture) -> Iterator[tuple[nn.Module, Fused]]:
    if architecture.fused:
        layers: Any = model.base_model.get_submodule(architecture.layers)
        yield from ((layer, fused) for layer in list(layers._modules.values()) for fused in architecture.fused)


def _split(linear: Any, sizes: dict[str, int], head_size: int) -> FusedLinear:
    transposed = isinstance(linear, Conv1D)
    weight = linear.weight.detach().t() if transposed else linear.weight.detach()
    weights = _parts_of(weight, list(sizes.values()), head_size)
    no_biases = [None] * len(weights)
    biases = no_biases if linear.bias is None else _parts_of(linear.bias.detach(), list(sizes.values()), head_size)
    parts: dict[str, nn.Module] = {}
    for name, own, bias in zip(sizes, weights, biases):
        part = nn.Linear(weight.shape[1], len(own), bias=bias is not None, device="meta")
        part.weight = nn.Parameter(own, requires_grad=linear.weight.requires_grad)
        if bias is not None:
            part.bias = nn.Parameter(bias, requires_grad=linear.bias.requires_grad)
        parts[name] = part
    return FusedLinear(parts, head_size, transposed)


def _parts_of(whole: Tensor, sizes: list[int], head_size: int) -> list[Tensor]:
    """The rows of each projection."""
    if not head_size:
        return list(whole.split(sizes))
    by_head = whole.unflatten(0, (-1, len(sizes), head_size))
    return [by_head[:, part].flatten(0, 1) for part in range(len(sizes))]


def _joined(fused: FusedLinear) -> nn.Module:
    parts: list[Any] = list(fused.children())
    weight = _whole([part.weight for part in parts], fused.head_size)
    bias = None if parts[0].bias is None else _whole([part.bias for part in parts], fused.head_size)
    out_features, in_features = weight.shape
    linear: Any
    if fused.transposed:
        with torch.device("meta"):
            linear = Conv1D(out_features, in_features)
        linear.weight = nn.Parameter(weight.detach().t(), requires_grad=weight.requires_grad)
    else:
        linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
        linear.weight = weight
    if bias is not None:
        linear.bias = bias
    return linear


def _whole(parts: list[nn.Parameter], head_size: int) -> nn.Parameter:
    """The parts as one, which they are views of where nobody has changed them."""
    first = parts[0].detach()
    size = (sum(len(part) for part in parts), *first.shape[1:])
    if head_size:
        by_head = [part.detach().unflatten(0, (-1, 1, head_size)) for part in parts]
        whole = torch.cat(by_head, dim=1).flatten(0, 2)
    elif not first.is_meta and all(_follow(before, after) for before, after in itertools.pairwise(parts)):
        whole = first.as_strided(size, first.stride(), first.storage_offset())
    else:
        whole = torch.cat([part.detach() for part in parts])
    return nn.Parameter(whole, requires_grad=parts[0].requires_grad)


def _follow(before: Tensor, after: Tensor) -> bool:
    """Whether the rows of one stand behind the other's."""
    same = before.untyped_storage().data_ptr() == after.untyped_storage().data_ptr()
    return same and after.storage_offset() == before.storage_offset() + len(before) * before.stride(0)

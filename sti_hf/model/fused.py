"""Linears that compute several projections at once, as several linears and back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sti_hf.model.architecture import Architecture, Fused

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FusedLinear(nn.Module):
    """What an `nn.Linear` computes, as several of its own: their outputs one behind the other."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[..., in_features]` to `[..., the sum of all out_features]`."""
        return torch.cat([part(x) for part in self.children()], dim=-1)


def split_fused(model: PreTrainedModel, architecture: Architecture) -> None:
    """Makes each fused linear of a model one for each of its projections: views of its weight, nothing is copied."""
    for layer, fused in _fused_of(model, architecture):
        linear = layer.get_submodule(fused.module)
        if not isinstance(linear, FusedLinear):
            layer.set_submodule(fused.module, _split(linear, architecture.fused_sizes(model.config, fused)))


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


def _split(linear: Any, sizes: dict[str, int]) -> FusedLinear:
    ends = torch.tensor(list(sizes.values())).cumsum(0).tolist()
    parts: dict[str, nn.Module] = {}
    for (name, size), end in zip(sizes.items(), ends):
        part = nn.Linear(linear.in_features, size, bias=linear.bias is not None, device="meta")
        part.weight = _part_of(linear.weight, end - size, end)
        if linear.bias is not None:
            part.bias = _part_of(linear.bias, end - size, end)
        parts[name] = part
    return FusedLinear(parts)


def _part_of(whole: nn.Parameter, start: int, end: int) -> nn.Parameter:
    return nn.Parameter(whole.detach()[start:end], requires_grad=whole.requires_grad)


def _joined(fused: FusedLinear) -> nn.Linear:
    parts: list[Any] = list(fused.children())
    out_features = sum(part.out_features for part in parts)
    linear = nn.Linear(parts[0].in_features, out_features, bias=parts[0].bias is not None, device="meta")
    linear.weight = _whole([part.weight for part in parts])
    if parts[0].bias is not None:
        linear.bias = _whole([part.bias for part in parts])
    return linear


def _whole(parts: list[nn.Parameter]) -> nn.Parameter:
    """The parts as one, which they are views of where nobody has changed them."""
    first = parts[0].detach()
    size = (sum(len(part) for part in parts), *first.shape[1:])
    if not first.is_meta and all(_follow(before, after) for before, after in itertools.pairwise(parts)):
        whole = first.as_strided(size, first.stride(), first.storage_offset())
    else:
        whole = torch.cat([part.detach() for part in parts])
    return nn.Parameter(whole, requires_grad=parts[0].requires_grad)


def _follow(before: Tensor, after: Tensor) -> bool:
    same = before.untyped_storage().data_ptr() == after.untyped_storage().data_ptr()
    return same and after.storage_offset() == before.storage_offset() + before.numel()

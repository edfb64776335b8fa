"""Linear layers whose weights take no gradient, through oneDNN where that is there: calibration is mostly these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _OneDNNLinear(torch.autograd.Function):
    """`x @ weight.T` with a gradient for x alone. On many CPUs far faster than the BLAS that `F.linear` calls."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _product(gradient.contiguous(), ctx.weight.t()), None


def _product(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` with no gradient for weight and bias."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight.detach(), None if bias is None else bias.detach())
    product: Tensor = _OneDNNLinear.apply(x, weight.detach())
    return product if bias is None else product + bias.detach()


@contextmanager
def frozen_linears(modules: Iterable[nn.Linear]) -> Iterator[None]:
    """Inside, these modules compute `frozen_linear`."""
    changed = list(modules)
    for module in changed:
        module.forward = _forward_of(module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _forward_of(module: nn.Linear) -> Any:
    return lambda x: frozen_linear(x, module.weight, module.bias)

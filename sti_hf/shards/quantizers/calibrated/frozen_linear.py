"""Linear layers whose weights take no gradient, in bfloat16 where the processor has it: calibration is mostly these.

What bfloat16 rounds off is a small part of what quantization does to the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sti_hf.process_memory import page_out, return_freed_memory
from sti_hf.shards.quantizers.calibrated.outliers import SparseWeights

ROWS_TOGETHER = 32
"""Products are of a multiple of so many rows: oneDNN keeps code for every number of rows that it has met, 3.5 MB for
the shapes of a BERT-base layer. Rows of padding change no bit of the others."""


def fast_dtype() -> torch.dtype:
    """What linear layers are fastest in on this processor."""
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None, output_scale: Tensor | None = None) -> Tensor:
    """`F.linear` in the weight's dtype, with float32 inputs, outputs and gradients, and none for weight and bias.

    `output_scale` float32 `[outputs]` multiplies the product, not the bias, and may take a gradient.
    """
    rows = x.to(weight.dtype).flatten(0, -2)
    padded = F.pad(rows, (0, 0, 0, -len(rows) % ROWS_TOGETHER))
    product = F.linear(padded, weight.detach())[: len(rows)].view(*x.shape[:-1], -1)
    bias = torch.zeros(1) if bias is None else bias.detach()
    return product + bias if output_scale is None else torch.addcmul(bias, product, output_scale)


@contextmanager
def frozen_linears(modules: Iterable[nn.Linear], dtype: torch.dtype) -> Iterator[None]:
    """Inside, these modules have copies of their weights in `dtype`, to be changed at will, and compute
    `frozen_linear`; afterwards they have their own weights again."""
    own_weights = [(module, module.weight.data) for module in modules]
    for module, weight in own_weights:
        module.weight.data = weight.to(dtype, copy=True)
        page_out(weight)
        module.forward = _forward_of(module)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for module, weight in own_weights:
            del module.forward
            module.weight.data = weight
        return_freed_memory()


def _forward_of(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda x: frozen_linear(x, module.weight, module.bias)


@contextmanager
def scaled_linears(
    scales: Iterable[tuple[nn.Linear, Callable[[], Tensor], bool]], outliers: Iterable[SparseWeights]
) -> Iterator[None]:
    """Inside, modules of `frozen_linears` scale what they multiply, and add outliers that are not scaled.

    Each with a function that gives its scales in every forward, float32: `[inputs]` where the flag is true, else
    `[outputs]`; and with its `outliers`.
    """
    before = []
    for (module, scale, of_inputs), exact in zip(scales, outliers, strict=True):
        before.append((module, module.forward))
        forward = _input_scaled(module, scale, exact) if of_inputs else _output_scaled(module, scale, exact)
        module.forward = forward  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for module, forward in before:
            module.forward = forward  # type: ignore[method-assign]


def _input_scaled(module: nn.Linear, scale: Callable[[], Tensor], exact: SparseWeights) -> Callable[[Tensor], Tensor]:
    return lambda x: exact.add_product(frozen_linear(x * scale(), module.weight, module.bias), x)


def _output_scaled(module: nn.Linear, scale: Callable[[], Tensor], exact: SparseWeights) -> Callable[[Tensor], Tensor]:
    return lambda x: exact.add_product(frozen_linear(x, module.weight, module.bias, scale()), x)

"""A linear layer that holds no weight: it is decompressed when it is multiplied by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sti_hf.errors import WeightInStoreError
from sti_hf.runtime.blocks import Block
from sti_hf.runtime.forwards import Forwards
from sti_hf.runtime.inference import Inference
from sti_hf.runtime.modules.part import StoredPart


class ElasticLinear(StoredPart, nn.Module):
    """A linear layer whose weight is decompressed from its active slices in each forward.

    `layer` and `matrix` say which weight it is. Where `by_columns`, the slices are columns of the weight, stored as
    rows of its transpose. The bias is resident, in slice order.
    """

    def __init__(self, linear: nn.Linear, layer: int, matrix: str, by_columns: bool, forwards: Forwards) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.layer, self.matrix, self.by_columns = layer, matrix, by_columns
        self.bias = linear.bias
        self._forwards = forwards
        self._narrow_bias: tuple[nn.Parameter, int, Tensor] | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise WeightInStoreError(
                f"{self.matrix} of layer {self.layer} is in the model's store and has no weight in memory: read the "
                "checkpoint's, or full_model(store) of sti_hf.integrations.full_model."
            )
        return super().__getattr__(name)

    def stock(self) -> nn.Linear:
        """The module in whose place this stands, with its bias and without a weight (on the device meta)."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.bias = self.bias
        return linear

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[..., active in_features]` to `[..., active out_features]`."""
        inference = self._forwards.running()
        blocks = inference.blocks(self.layer, self.matrix)
        bias = self._bias_in(inference.path.torch_dtype)
        if self.by_columns:
            return _add_up(x, blocks, bias, inference)
        parts = [
            inference.path.multiply(
                x, inference.decompress(block), None if bias is None else bias[block.first : block.last]
            )
            for block in blocks
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _bias_in(self, dtype: torch.dtype) -> Tensor | None:
        """The bias in a dtype, converted once as long as it stays what it is."""
        bias = self.bias
        if bias is None or bias.dtype == dtype:
            return None if bias is None else bias.detach()
        narrow = self._narrow_bias
        if narrow is None or narrow[0] is not bias or narrow[1] != bias._version or narrow[2].dtype != dtype:
            self._narrow_bias = narrow = (bias, bias._version, bias.detach().to(dtype))
        return narrow[2]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, matrix={self.matrix!r}"


def _add_up(x: Tensor, blocks: list[Block], bias: Tensor | None, inference: Inference) -> Tensor:
    total: Tensor | None = None
    for block in blocks:
        inputs = x[..., block.first : block.last]
        weight = inference.decompress(block).t()
        part = inference.path.multiply(inputs, weight, bias if total is None else None)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total

"""A linear layer that trains any number of its first slices."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from eval.elastic.fake_quantization import fake_quantized


class SlicedLinear(nn.Linear):
    """Computes with the first slices of the linear layer that it stands in for, whose parameters it takes over.

    What runs is what `ElasticLinear` of sti_hf.runtime does: rows of the weight and of the bias, or where
    `by_columns` columns of the weight and the whole bias. Gradients reach the whole parameters.

    Args:
        linear: with the slices in order.
        rows: of the weight that a slice has (columns where `by_columns`).
        by_columns: slices are columns of the weight.
    """

    def __init__(self, linear: nn.Linear, rows: int, by_columns: bool) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)
        self.rows, self.by_columns = rows, by_columns
        self.size = linear.in_features if by_columns else linear.out_features
        self.bits: Sequence[int] | None = None

    def use(self, slices: int, bits: Sequence[int] | None = None) -> None:
        """The next forwards compute with that many slices, at fidelities `bits` `[slices]`; None: all in full."""
        self.size, self.bits = slices * self.rows, bits

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[..., active in_features]` to `[..., active out_features]`."""
        weight = self.weight[:, : self.size] if self.by_columns else self.weight[: self.size]
        bias = self.bias if self.bias is None or self.by_columns else self.bias[: self.size]
        if self.bits is not None:
            weight = fake_quantized(weight, self.bits, self.by_columns)
        return F.linear(x, weight, bias)

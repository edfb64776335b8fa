"""The ways this machine can multiply by a weight matrix. Which is fastest differs: the device profile measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sti_hf.errors import ConfigurationError

Gemm = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`gemm(x, weight, bias)`: `x @ weight.T + bias`, as `F.linear`."""


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


GEMMS: dict[str, Gemm] = {"default": F.linear}
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    GEMMS["onednn"] = _onednn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ComputePath:
    """A dtype to decompress to and multiply in, and the GEMM that does it."""

    dtype: str
    gemm: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigurationError(f"compute_dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}.")
        if self.gemm not in GEMMS:
            raise ConfigurationError(f"This machine has no GEMM {self.gemm!r}; it has {', '.join(GEMMS)}.")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the working buffer."""
        return DTYPES[self.dtype]

    def works(self) -> bool:
        """Whether this processor can do it: not every one multiplies in every dtype by every library."""
        one = torch.ones(8, 8, dtype=self.torch_dtype)
        try:
            return bool((self.multiply(one, one, one[0]) == 9).all())
        except RuntimeError:
            return False

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ weight.T + bias` in this path's dtype, returned in that of `x`.

        `weight` `[out, in]` and `bias` are in the path's dtype. Inputs on another device get the weight sent there.
        """
        if x.device.type != "cpu":
            on_device = None if bias is None else bias.to(x.device)
            y = F.linear(x.to(weight.dtype), weight.to(x.device, non_blocking=True), on_device)
        else:
            y = GEMMS[self.gemm](x.to(weight.dtype), weight, bias)
        return y.to(x.dtype)


def available_paths(dtype: str = "auto") -> list[ComputePath]:
    """All paths by which this machine can multiply, of one dtype, or of every dtype with "auto"."""
    dtypes = list(DTYPES) if dtype == "auto" else [dtype]
    return [path for name in dtypes for gemm in GEMMS if (path := ComputePath(name, gemm)).works()]

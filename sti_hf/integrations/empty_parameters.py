"""Models without weights, made in one thread and without the others' notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CPU, META = torch.device("cpu"), torch.device("meta")

OF_DEFAULT_DTYPE = frozenset(
    getattr(torch, name)
    for name in (
        *("zeros", "ones", "rand", "randn", "linspace", "logspace", "eye", "scalar_tensor"),
        *("bartlett_window", "blackman_window", "hamming_window", "hann_window", "kaiser_window"),
    )
)
"""What makes tensors of torch's default dtype, unless told otherwise."""

OF_FLOATS = frozenset({torch.arange, torch.full, torch.range, torch.tensor, torch.as_tensor, torch.asarray})
"""What makes tensors of torch's default dtype from Python's floats."""

INITIALIZERS = frozenset(
    {getattr(torch.nn.init, name) for name in dir(torch.nn.init) if name.endswith("_") and not name.startswith("_")}
    | {Tensor.fill_, Tensor.zero_, Tensor.normal_, Tensor.uniform_}
)
"""What fills a tensor in place, and need not where it has no memory."""


class EmptyParameters(TorchFunctionMode):
    """In this thread, for as long as it is entered: `torch.empty` gives tensors on the device meta (modules make their
    parameters so), all else is made on the CPU, and where torch's default dtype would decide, `dtype` does.

    Neither the default dtype and device nor what other threads replace in torch or Transformers has a say.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            return func(*args, **_with(kwargs, META, self.dtype))
        if func in INITIALIZERS:
            tensor = args[0] if args else kwargs["tensor"]
            return tensor if tensor.is_meta else func(*args, **kwargs)
        if func in OF_DEFAULT_DTYPE:
            return func(*args, **_with(kwargs, CPU, self.dtype))
        if func in OF_FLOATS and not isinstance(args[0] if args else None, Tensor):
            # Transformers asks an empty tensor whether models are being made on the device meta: then it neither
            # initializes them nor looks at every module of theirs.
            device = META if func is torch.tensor and args and isinstance(args[0], list) and not args[0] else CPU
            return func(*args, **_with(kwargs, device, self.dtype if _has_float((args, kwargs)) else None))
        return func(*args, **kwargs)


def _with(kwargs: dict[str, Any], device: torch.device, dtype: torch.dtype | None) -> dict[str, Any]:
    """`kwargs` with a device and, unless None, a dtype where they name none."""
    if kwargs.get("device") is None:
        kwargs = {**kwargs, "device": device}
    return {**kwargs, "dtype": dtype} if dtype is not None and kwargs.get("dtype") is None else kwargs


def _has_float(value: Any) -> bool:
    """Whether one of Python's own floats is among nested values: NumPy's bring their dtype along."""
    if isinstance(value, dict):
        return any(map(_has_float, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_float, value))
    return isinstance(value, float) and not isinstance(value, np.generic)

"""The dtype in which a layer computes: the compute path's, where the model's is wider.

Converting the inputs and outputs of each matrix costs more than the layer's other operations save by a wider dtype,
and attention multiplies in it, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LayerPrecision:
    """Runs layers in `dtype`, with inputs and outputs in the model's own. Norms keep their float32 weights.

    Only on the CPU, whose layer norm takes such weights, and only a float32 model: one that the user has in another
    dtype stays in that.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._narrows = False
        self._shared: dict[int, tuple[Tensor, Tensor]] = {}

    def narrowed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A layer's inputs in the dtype that it computes in. Neither is changed in place."""
        states: Tensor = args[0] if args else kwargs["hidden_states"]
        self._narrows = states.dtype == torch.float32 != self.dtype and states.device.type == "cpu"
        if not self._narrows:
            return args, kwargs

        def narrow(value: Any) -> Any:
            return states.to(self.dtype) if value is states else self._of_all_layers(value)

        return tuple(map(narrow, args)), {name: narrow(value) for name, value in kwargs.items()}

    def widened(self, output: Any) -> Any:
        """A layer's output in the model's dtype."""
        if not self._narrows:
            return output
        if isinstance(output, tuple):
            return tuple(map(self.widened, output))
        return output.float() if isinstance(output, Tensor) and output.dtype == self.dtype else output

    def forget(self) -> None:
        """Ends an inference: what its layers shared is not kept."""
        self._shared.clear()

    def _of_all_layers(self, value: Any) -> Any:
        """Masks, position biases and rotary tables are the same tensors for all layers: each is converted once."""
        if isinstance(value, tuple):
            return tuple(map(self._of_all_layers, value))
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if id(value) not in self._shared:
            # A mask has float32's least number, which would become -inf: a row of these has no softmax.
            narrow = value.clamp(min=torch.finfo(self.dtype).min).to(self.dtype)
            self._shared[id(value)] = value, narrow  # the key is the tensor's as long as it lives
        return self._shared[id(value)][1]

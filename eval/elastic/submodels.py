"""The submodels of a stock model, run for training: they share its weights, and gradients reach them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from eval.elastic.sliced_linear import SlicedLinear
from sti_hf.errors import UnsupportedModelError
from sti_hf.model import get_architecture
from sti_hf.model.depth import kept_layers
from sti_hf.model.layer_runner import (
    StandIn,
    input_of_layer,
    layers_of,
    only_layers,
    output_of_layer,
    outputs_of_layer,
    with_input,
)


@dataclass(frozen=True)
class Outputs:
    """What submodels of one width compute.

    `states[0]` is the embeddings' output, `states[l]` that of the l-th layer, `[batch, tokens, hidden]`; `logits` are
    `[batch, num_labels]` by depth.
    """

    states: list[Tensor]
    logits: dict[int, Tensor]


class Submodels:
    """Runs the n x m submodels of a model: those of one width in one forward, whatever their depths.

    The model stays what it is (its class, its parameters and their names), and its own forward runs: only its sliced
    linears become `SlicedLinear`s, and its layers get hooks. Its slices must stand in order of importance.

    Args:
        model: a classifier of a supported family. Not with gradient checkpointing, which runs layers again in the
            backward pass, when another submodel is set.

    Raises `UnsupportedModelError` for a model of another family.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.architecture = get_architecture(model.config)
        self.grid = self.architecture.grid(model.config)
        shared = self.grid.matrix_rows["q"] != self.grid.matrix_rows["k"]
        if self.architecture.fused or shared or not self.grid.droppable:
            raise UnsupportedModelError(
                f"Elastic fine-tuning cannot cut {model.config.model_type} models: their projections are fused, they "
                "share keys among heads, or need all of these."
            )
        self._layers = list(layers_of(model))
        self._linears: list[list[SlicedLinear]] = []
        self._width = self.grid.slices
        self._states: list[Tensor] = []
        self._embeddings: Tensor | None = None
        self._outputs = 0
        for layer, linears in zip(self._layers, self.architecture.linears(model)):
            sliced = [
                SlicedLinear(linears[matrix.name], self.grid.matrix_rows[matrix.name], matrix.by_columns)
                for matrix in self.architecture.matrices
            ]
            for matrix, linear in zip(self.architecture.matrices, sliced):
                layer.set_submodule(matrix.module, linear)
            layer.register_forward_pre_hook(self._before_layer, with_kwargs=True)
            layer.register_forward_hook(self._after_layer)
            self._linears.append(sliced)

    def use(self, width: int, bits: np.ndarray | None = None) -> None:
        """The model's next forwards have the first `width` slices of every layer, at fidelities `bits` int `[N, M]`;
        None: all in full."""
        self._width = width
        for index, (layer, linears) in enumerate(zip(self._layers, self._linears)):
            self.architecture.prepare_layer(layer, width)
            fidelities = None if bits is None else bits[index, :width].tolist()
            for linear in linears:
                linear.use(width, fidelities)

    def run(
        self,
        inputs: Mapping[str, Tensor],
        width: int,
        depths: Sequence[int],
        bits: np.ndarray | None = None,
        embeddings: Tensor | None = None,
        forward: Callable[..., Any] | None = None,
    ) -> Outputs:
        """What the submodels `depths` × `width` make of a batch; `bits` as `use` takes them.

        `embeddings` is what the embeddings gave in another run of this batch: gradients then reach them once for all
        runs. `forward` calls the model where something is wrapped around it, as training in parallel does.
        """
        self.use(width, bits)
        deepest = max(depths)
        self._states, self._embeddings = [], embeddings
        try:
            kept = [self._layers[layer] for layer in kept_layers(self.grid.layers, deepest)]
            with only_layers(self.model, kept):
                logits = {deepest: (forward or self.model)(**inputs).logits}
            states, self._states = self._states, []
            for depth in set(depths) - {deepest}:
                with only_layers(self.model, [StandIn(self._layers[0], self._outputs, states[depth])]):
                    logits[depth] = self.model(**inputs).logits
            return Outputs(states, logits)
        finally:
            self._states, self._embeddings = [], None
            self.use(self.grid.slices)

    def _before_layer(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self._states:
            if self._embeddings is not None:
                args, kwargs = with_input(args, kwargs, self._embeddings)
            self._states.append(input_of_layer(args, kwargs))
        return self.architecture.layer_inputs(args, kwargs, range(self._width))

    def _after_layer(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._outputs = outputs_of_layer(output)
        self._states.append(output_of_layer(output))

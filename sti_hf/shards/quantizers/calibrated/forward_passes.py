"""Calibration text through a model's layers, one after another, as each fidelity of the layers before gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sti_hf.architectures.base import HEAD_MATRICES, Architecture, Matrix
from sti_hf.architectures.grid import Grid
from sti_hf.shards.quantizers.calibrated.scratch import Scratch

Batch = Mapping[str, Tensor]
"""What the model's forward takes: `input_ids`, `attention_mask` (1: a token, 0: padding), .."""


def input_of(matrix: Matrix) -> str:
    """Name of the inputs that a matrix multiplies: q, k and v have the same, and so have up and gate."""
    if matrix.by_columns:
        return matrix.name
    return "attention" if matrix.name in HEAD_MATRICES else "ffn"


class CalibrationPass:
    """Hidden states of all calibration batches before the layer that is next, one version for each of `keys`.

    A hidden state is float32 `[batch, tokens, hidden]`. They are kept in the scratch folder: memory is what one layer
    needs for one batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        grid: Grid,
        batches: Sequence[Batch],
        keys: Iterable[object],
        scratch: Scratch,
    ) -> None:
        self._model = model
        self._matrices = architecture.matrices
        self._grid = grid
        self._batches = batches
        layers: Any = model.base_model.get_submodule(architecture.layers)
        self._layers: Sequence[nn.Module] = layers
        self._scratch = scratch
        keys = tuple(keys)
        for index, batch in enumerate(batches):
            states = _hidden_states(*self._layer_arguments(batch))
            for key in keys:
                self._scratch.save(f"states.{key}.{index}", {"states": states})

    @torch.no_grad()
    def input_moments(self, layer: int, key: object) -> dict[str, Tensor]:
        """Second moments of the inputs of the layer's matrices, by `input_of`, summed over the tokens.

        Float32 `[1, hidden, hidden]`; of a matrix cut by columns one for each slice, `[M, rows, rows]`, since slices
        change fidelity independently.
        """
        moments: dict[str, Tensor] = {}
        mask = torch.empty(0)
        handles = []

        def collect(name: str, slices: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                inputs = args[0].flatten(0, -2)[mask].unflatten(1, (slices, -1)).transpose(0, 1)
                moments[name] = moments.get(name, torch.zeros(())) + inputs.transpose(1, 2) @ inputs

            return hook

        modules = {input_of(matrix): matrix for matrix in self._matrices}
        for name, matrix in modules.items():
            slices = self._grid.slices if matrix.by_columns else 1
            module = self._layers[layer].get_submodule(matrix.module)
            handles.append(module.register_forward_pre_hook(collect(name, slices)))
        try:
            for index, batch in enumerate(self._batches):
                states = self._states(key, index)
                mask = token_mask(batch, states).flatten()
                self._run(layer, batch, states)
        finally:
            for handle in handles:
                handle.remove()
        return moments

    @torch.no_grad()
    def advance(self, layer: int, key: object) -> None:
        """Replace the hidden states of `key` by the layer's outputs, with the weights the layer has now."""
        for index, batch in enumerate(self._batches):
            outputs = self._run(layer, batch, self._states(key, index))
            self._scratch.save(f"states.{key}.{index}", {"states": outputs})

    def _states(self, key: object, index: int) -> Tensor:
        return self._scratch.load(f"states.{key}.{index}")["states"]

    def _run(self, layer: int, batch: Batch, hidden_states: Tensor) -> Tensor:
        args, kwargs = self._layer_arguments(batch)
        if args:
            args = (hidden_states, *args[1:])
        else:
            kwargs["hidden_states"] = hidden_states
        return output_of_layer(self._layers[layer](*args, **kwargs))

    @torch.no_grad()
    def _layer_arguments(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model's forward calls its first layer with. Masks are made anew, not kept: they may be large."""
        caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.append((args, dict(kwargs)))
            raise _FirstLayerReached

        handle = self._layers[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._model(**batch)
        except _FirstLayerReached:
            pass
        finally:
            handle.remove()
        return caught[0]


class _FirstLayerReached(Exception):
    """Ends a forward before its first layer."""


def _hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def output_of_layer(output: Any) -> Tensor:
    """Hidden states in what a layer's forward returns."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def token_mask(batch: Batch, hidden_states: Tensor) -> Tensor:
    """Bool `[batch, tokens]`: what is not padding."""
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones(hidden_states.shape[:-1], dtype=torch.bool)
    return mask.reshape(hidden_states.shape[:-1]) != 0

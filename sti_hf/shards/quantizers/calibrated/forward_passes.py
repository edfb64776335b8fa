"""Calibration text through a model's layers, one after another, as each fidelity of the layers before gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sti_hf.model.architecture import HEAD_MATRICES, Architecture, Matrix
from sti_hf.model.grid import Grid
from sti_hf.model.layer_runner import Inputs, LayerRunner
from sti_hf.shards.quantizers.calibrated.scratch import Scratch


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
        batches: Sequence[Inputs],
        keys: Iterable[object],
        scratch: Scratch,
    ) -> None:
        self._runner = LayerRunner(model)
        self._linears = architecture.linears(model)
        self._matrices = architecture.matrices
        self._grid = grid
        self._batches = batches
        self._scratch = scratch
        keys = tuple(keys)
        for index, batch in enumerate(batches):
            states = self._runner.embedded(batch)
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
            module = self._linears[layer][matrix.name]
            handles.append(module.register_forward_pre_hook(collect(name, slices)))
        try:
            for index, batch in enumerate(self._batches):
                states = self._states(key, index)
                mask = token_mask(batch, states).flatten()
                self._runner.advance(batch, layer, states)
        finally:
            for handle in handles:
                handle.remove()
        return moments

    @torch.no_grad()
    def advance(self, layer: int, key: object) -> None:
        """Replace the hidden states of `key` by the layer's outputs, with the weights the layer has now."""
        for index, batch in enumerate(self._batches):
            outputs = self._runner.advance(batch, layer, self._states(key, index))
            self._scratch.save(f"states.{key}.{index}", {"states": outputs})

    def _states(self, key: object, index: int) -> Tensor:
        return self._scratch.load(f"states.{key}.{index}")["states"]


def token_mask(batch: Inputs, hidden_states: Tensor) -> Tensor:
    """Bool `[batch, tokens]`: what is not padding."""
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones(hidden_states.shape[:-1], dtype=torch.bool)
    return mask.reshape(hidden_states.shape[:-1]) != 0

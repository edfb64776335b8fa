"""Second moments of the inputs of a language model's matrices, weighted by what an error of the outputs costs.

To second order, a small error of a linear's output at some token costs the square of its product with the gradient of
the log-likelihood there (Fisher's information), the label being drawn from the model's own prediction. So a token
counts for the squared gradient of the outputs, of each slice apart: many tokens hardly matter to what is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sti_hf.model.architecture import Architecture
from sti_hf.model.grid import Grid
from sti_hf.model.layer_runner import Inputs
from sti_hf.shards.quantizers.calibrated.forward_passes import input_of, token_mask
from sti_hf.shards.quantizers.calibrated.language_head import LanguageHead
from sti_hf.shards.quantizers.calibrated.scratch import Scratch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_fisher_moments(
    model: PreTrainedModel,
    architecture: Architecture,
    grid: Grid,
    head: LanguageHead,
    batches: Sequence[Inputs],
    scratch: Scratch,
    seed: int,
    progress: Callable[[], None],
) -> None:
    """Saves in `scratch`, as `moments.<layer>`, float32 `[M, inputs, inputs]` by `input_of`, summed over all tokens.

    Their scale is free, and that of matrices with the same inputs is evened out. Memory is the activations of one
    batch and the moments of one layer. `progress` is called after each batch.
    """
    generator = torch.Generator().manual_seed(seed)
    collectors = [_LayerCollector(architecture, grid.slices, linears) for linears in architecture.linears(model)]
    try:
        with _gradients_of_activations(model):
            for index, batch in enumerate(batches):
                states = head.states(batch)
                mask = token_mask(batch, states)
                logits = head.logits(states[mask])
                labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
                F.cross_entropy(logits, labels, reduction="sum").backward()
                for layer, collector in enumerate(collectors):
                    moments = collector.take(mask.flatten())
                    if index:
                        before = scratch.load(f"moments.{layer}")
                        moments = {name: before[name] + moment for name, moment in moments.items()}
                    scratch.save(f"moments.{layer}", moments)
                progress()
    finally:
        for collector in collectors:
            collector.remove()


class _LayerCollector:
    """Inputs of a layer's matrices, and the squared gradients of their outputs, of one batch."""

    def __init__(self, architecture: Architecture, slices: int, linears: Mapping[str, nn.Linear]) -> None:
        self._slices = slices
        self._of_slice = {input_of(matrix): matrix.by_columns for matrix in architecture.matrices}
        self._inputs: dict[str, Tensor] = {}
        self._squares: dict[str, list[Tensor]] = {name: [] for name in self._of_slice}
        self._handles = [
            linears[matrix.name].register_forward_hook(self._hook(input_of(matrix)))
            for matrix in architecture.matrices
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def take(self, mask: Tensor) -> dict[str, Tensor]:
        """Moments of the batch's tokens that `mask` bool `[tokens]` has, `[M, inputs, inputs]`."""
        moments = {}
        for name, of_slice in self._of_slice.items():
            # A matrix cut by columns has inputs of each slice and outputs of all; the others the other way round.
            groups, parts = (1, self._slices) if of_slice else (self._slices, 1)
            weights = torch.zeros(groups, int(mask.sum()))
            for gradient in self._squares[name]:
                squares = gradient.flatten(0, -2)[mask].unflatten(1, (groups, -1)).square().mean(-1).t()
                weights += squares / squares.mean().clamp_min(1e-30)
            inputs = self._inputs.pop(name).flatten(0, -2)[mask].unflatten(1, (parts, -1)).transpose(0, 1)
            moments[name] = (inputs * weights[..., None]).transpose(1, 2) @ inputs
            self._squares[name].clear()
        return moments

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._inputs[name] = args[0].detach()
            output.register_hook(self._squares[name].append)

        return keep


@contextmanager
def _gradients_of_activations(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a backward pass goes through all activations, and to no parameter."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        handle.remove()
        for parameter in parameters:
            parameter.requires_grad_(True)

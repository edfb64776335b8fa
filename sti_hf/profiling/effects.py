"""First-order effects: how every shard's quantization error moves the model's own outputs, text by text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sti_hf.errors import SourceError
from sti_hf.model.architecture import Matrix
from sti_hf.planning.effects import LEVELS, EffectsImportance
from sti_hf.profiling.checked_plans import check_plans, plans_to_check
from sti_hf.profiling.outputs import Batch, OutputMeasure, Projected, check_texts
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.shards.layout import FULL
from sti_hf.shards.partition import inverse_order
from sti_hf.shards.store import ShardStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FRACTIONS = (1 / 6, 1 / 2, 5 / 6)
"""Where on the way from full to the base the gradients are taken that are averaged: the middles of three equal parts.
So the effects add up to nearly all that the outputs really move. Gradients averaged between the two ends do not."""

SHARES = (0.3, 1.0, 3.0)
"""Shares of the squares of single effects with which plans are made to be checked: which is best varies."""

GRADIENT_BYTES = 64 << 20
"""Weight gradients that are held at a time, one matrix's of some texts."""


def measure_effects(
    model: PreTrainedModel,
    store: ShardStore,
    batches: Sequence[Batch],
    *,
    base_bits: int = 2,
    progress: Callable[[int], object] = lambda steps: None,
    outputs: OutputMeasure | None = None,
) -> EffectsImportance:
    """Measures what all shards are worth by their effects on the model's own outputs, and checks plans made from that.

    Effects are measured on every other text, and plans run on the rest, so that what is chosen is not what fits some
    texts by chance.

    Args:
        model: the checkpoint that the store was made from, in float32, with any head. Its linear layers are
            overwritten.
        store: with full weights.
        batches: padded calibration texts without labels, best of about one length in a batch.
        base_bits: the lowest fidelity of plans; effects are measured on the way from full to it.
        progress: called with the number of steps done since the last call; a step is a batch or a plan.
        outputs: how far outputs are apart; None: `Projected`.

    Raises `ValueError` where there are fewer than 2 texts, or batches have labels; `StoreError` where the store has no
    full weights.
    """
    if base_bits not in LEVELS:
        raise SourceError(f"base_bits must be one of {', '.join(map(str, LEVELS))}, not {base_bits!r}.")
    measured, held_out = _halves(batches)
    weights = PlanWeights(model, store)
    base = np.full((store.grid.layers, store.grid.slices), base_bits)
    probe = EffectsProbe(model, weights, measured, outputs)
    around = [probe.measure(base, fraction, progress) for fraction in FRACTIONS]
    effects = np.mean(around, axis=0)
    profiles = [EffectsImportance(effects, share=share) for share in SHARES]
    plans = plans_to_check(profiles, store.grid.layers, store.grid.slices, base_bits)
    return EffectsImportance(effects, check_plans(model, weights, held_out, plans, progress, outputs))


def _halves(batches: Sequence[Batch]) -> list[list[Batch]]:
    """Every other text, and the rest."""
    halves: list[list[Batch]] = []
    for first in (0, 1):
        half: list[Batch] = [{name: values[first::2] for name, values in batch.items()} for batch in batches]
        halves.append([batch for batch in half if len(next(iter(batch.values())))])
        if not halves[-1]:
            raise SourceError("Effects need at least 2 calibration texts.")
    return halves


class EffectsProbe:
    """Measures effects around any fidelities of a model.

    For a text x, e_i^b(x) is the first-order change of an output (see `OutputMeasure.directions`) when the weights of
    shard i go from full to b bits: the product of the change of the weights with the gradient of the output with
    respect to them. One forward and one backward a direction give it for all shards and fidelities at once: the
    gradient of a weight matrix for one text is `g^T a` (a the inputs of its linear layer, g the gradients of its
    outputs, both `[tokens, ...]`), and padded tokens have no part in it, since their g is 0.

    Args:
        weights: of the model, whose fidelities they are.
        batches: padded inputs without labels.
        outputs: of what the effects are; None: `Projected`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        weights: PlanWeights,
        batches: Sequence[Batch],
        outputs: OutputMeasure | None = None,
    ) -> None:
        self.model = model.eval()
        self.outputs = outputs or Projected()
        self.weights = weights
        self.batches = batches
        check_texts(batches)

    def measure(
        self, bits: np.ndarray, fraction: float = 1.0, progress: Callable[[int], object] = lambda batches: None
    ) -> np.ndarray:
        """Effects with the gradients of the model a `fraction` of the way from full to fidelities `bits` `[N, M]`.

        Returns float32 `[N, M, len(LEVELS), directions * texts]`. `progress` is called with 1 after each batch.
        """
        self.weights.set(bits, fraction)
        parts, texts = [], 0
        for batch in self.batches:
            parts.append(self._batch_effects(batch, texts))
            texts += parts[-1].shape[-1]
            progress(1)
        effects = torch.cat(parts, dim=-1)
        return effects.flatten(3).numpy()

    def _batch_effects(self, batch: Batch, first_text: int) -> Tensor:
        """float32 `[N, M, len(LEVELS), directions, texts]`."""
        grid = self.weights.store.grid
        with torch.enable_grad(), _embedded(self.model) as start, self._recorder() as recorder:
            outputs = self.outputs.directions(self.model(**batch), batch, first_text)
            count, texts = outputs.shape
            effects = torch.zeros(count, grid.layers, grid.slices, len(LEVELS), texts)
            for index, output in enumerate(outputs):
                recorder.effects = effects[index]
                torch.autograd.grad(output.sum(), start, retain_graph=index + 1 < count)
        return effects.permute(1, 2, 3, 0, 4)

    @contextmanager
    def _recorder(self) -> Iterator[_Recorder]:
        recorder = _Recorder(self.weights)
        handles = [
            linear.register_forward_hook(recorder.hook(layer, matrix))
            for layer, matrix, linear in self.weights.linears()
        ]
        try:
            yield recorder
        finally:
            for handle in handles:
                handle.remove()


class _Recorder:
    """Takes each linear layer's gradients when they come, and leaves what they say of its slices in `effects`."""

    def __init__(self, weights: PlanWeights) -> None:
        self.weights = weights
        self.effects = torch.empty(0)
        self._layer = -1
        self._changes = torch.empty(0)

    def hook(self, layer: int, matrix: Matrix) -> Callable[..., None]:
        """A forward hook for the linear layer of that matrix."""

        def forward(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.register_hook(lambda gradient: self._add(layer, matrix, inputs[0].detach(), gradient))

        return forward

    def _add(self, layer: int, matrix: Matrix, inputs: Tensor, gradient: Tensor) -> None:
        """Adds the effects of one matrix: gradients `[sequences, tokens, out]`, `inputs` `[sequences, tokens, in]`."""
        if layer != self._layer:
            self._layer, self._changes = layer, self._weight_changes(layer)
        grid = self.weights.store.grid
        first = grid.first_row[matrix.name]
        changes = self._changes[:, :, first : first + grid.matrix_rows[matrix.name]].flatten(2)
        # A slice is rows of this matrix, transposed where the layer's own has it as columns.
        rows, columns = (inputs, gradient) if matrix.by_columns else (gradient, inputs)
        step = max(1, GRADIENT_BYTES // (4 * rows.shape[-1] * columns.shape[-1]))
        texts = self.effects.shape[-1]
        for k in range(0, len(rows), step):
            gradients = rows[k : k + step].transpose(1, 2) @ columns[k : k + step]
            moved = changes @ gradients.view(len(gradients), grid.slices, -1).permute(1, 2, 0)
            # Multiple choice has several sequences of one text, next to each other.
            owners = torch.arange(k, k + len(gradients)) * texts // len(rows)
            self.effects[layer].index_add_(2, owners, moved[self._order(layer)])

    def _weight_changes(self, layer: int) -> Tensor:
        """From full to each of `LEVELS`: float32 `[M, len(LEVELS), slice_rows, row_length]`, slices as the model's."""
        full = self.weights.shards(layer, FULL)
        changes = torch.stack([self.weights.shards(layer, bits) for bits in LEVELS], dim=1).sub_(full[:, None])
        return changes[inverse_order(self._order(layer))]

    def _order(self, layer: int) -> list[int]:
        return list(self.weights.store.stack.slice_order[layer])


@contextmanager
def _embedded(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Word embeddings of the model's next forward, from which gradients can be asked."""
    found: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        found.append(output if output.requires_grad else output.requires_grad_())
        return output

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()

"""Row scales tuned by gradient descent, so that the quantized model's hidden states and outputs follow the full one's.

Codes and codebooks stay. A row scale is one factor on an output of a linear layer (on an input, where a slice is
columns), so a step needs no gradient of a weight: it costs two forwards (layers are `recomputed`) and a backward to
the activations.

Shards change fidelity independently. Scales tuned with the whole model at 2 bits learn to make up for one another's
errors, and raising half of the shards then does harm. So in every other round of steps some shards are at random
higher fidelities, whose scales rest: those of 6 bits shall not make up for the errors of 2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sti_hf.model.architecture import Architecture
from sti_hf.model.layer_runner import Inputs, layers_of, output_of_layer
from sti_hf.process_memory import return_freed_memory
from sti_hf.shards.layout import FIDELITIES
from sti_hf.shards.quantizers.calibrated.forward_passes import token_mask
from sti_hf.shards.quantizers.calibrated.frozen_linear import scaled_linears
from sti_hf.shards.quantizers.calibrated.outliers import SparseWeights
from sti_hf.shards.quantizers.calibrated.recomputation import recomputed
from sti_hf.shards.quantizers.calibrated.scratch import Scratch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEARNING_RATES = {2: 1e-2, 3: 2e-3}
"""Largest step of a scale's logarithm, by fidelity. It is a cosine's over the steps, after a short rise.

From 4 bits on tuning fits the calibration texts and nothing else: those scales stay as fitted."""

ROUNDS = (2, 2, 2, 3)
"""The fidelity of each pair of rounds, uniform and mixed, over and over: the lower, the more there is to tune."""

STEPS_OF_ROUND = 4
RISING_STEPS = 5
ADAM_BETAS = (0.9, 0.98)

TOKENS_AT_ONCE = 256
"""A batch goes through the model in even parts of about so many tokens, whose gradients add up: memory is a part's."""

LayerScales = dict[str, Tensor]
"""By matrix, float32 `[len(FIDELITIES), M, rows]`: the scales of every fidelity, ones for the full weights."""


class ScaleTuner:
    """Tunes the scales of a model towards what it computed when the tuner was made, with its full weights."""

    def __init__(
        self, model: PreTrainedModel, architecture: Architecture, batches: Sequence[Inputs], scratch: Scratch
    ) -> None:
        self._model = model
        self._matrices = architecture.matrices
        self._linears = architecture.linears(model)
        self._layers = list(layers_of(model))
        self._batches = batches
        self._scratch = scratch
        for index, batch in enumerate(batches):
            with torch.no_grad():
                states, logits = self._run(batch)
            targets = {str(layer): state.half() for layer, state in enumerate(states)}
            scratch.save(f"targets.{index}", targets if logits is None else {**targets, "logits": logits})
        return_freed_memory()

    def tune(
        self,
        scales: Sequence[LayerScales],
        outliers: Sequence[SparseWeights],
        set_codebook_values: Callable[[Tensor], None],
        steps: int,
        seed: int,
        progress: Callable[[], None],
    ) -> list[LayerScales]:
        """The scales of every layer, tuned.

        `outliers` are those of every matrix of the first layer, then of the next.
        `set_codebook_values(fidelities)` gives the model's layers the codebook values, not scaled, of shards at
        `fidelities` int64 `[N, M]` (full: the weights), without the outliers. `progress` is called after each step.
        """
        changes = [{name: torch.zeros_like(each).requires_grad_() for name, each in layer.items()} for layer in scales]
        parameters = [change for layer in changes for change in layer.values()]
        optimizer = torch.optim.Adam(parameters, betas=ADAM_BETAS)
        generator = torch.Generator().manual_seed(seed)
        order = _shuffled_forever(len(self._batches), generator)
        slices = next(iter(scales[0].values())).shape[1]
        rounds = fidelity_rounds((len(scales), slices), generator)
        for first in range(0, steps, STEPS_OF_ROUND):
            tuned, levels = next(rounds)
            set_codebook_values(torch.tensor(FIDELITIES)[levels])
            factors = self._factors(scales, changes, levels, tuned)
            with scaled_linears(factors, outliers), recomputed(self._layers[:-1]):  # the last is next anyway
                for step in range(first, min(steps, first + STEPS_OF_ROUND)):
                    optimizer.param_groups[0]["lr"] = _schedule(step, steps)
                    optimizer.zero_grad()
                    self._backward(next(order), parameters)
                    optimizer.step()
                    return_freed_memory()  # batches differ in length: freed blocks of one do not fit the next
                    progress()
        return [
            {name: _tuned(each, change[name]).detach() for name, each in layer.items()}
            for layer, change in zip(scales, changes, strict=True)
        ]

    def _backward(self, index: int, parameters: Sequence[Tensor]) -> None:
        """Adds the gradients of a batch's loss: the relative squared error of every layer's hidden states, and the
        divergence of the predicted classes.
        """
        batch, targets = self._batches[index], self._scratch.load(f"targets.{index}")
        target_states = [targets[str(layer)] for layer in range(len(self._layers))]
        rows, tokens = target_states[0].shape[:2]
        mask = token_mask(batch, target_states[0])[..., None]
        squares = [(target.float() * mask).square().sum() for target in target_states]
        parts = -(-rows * tokens // TOKENS_AT_ONCE)
        for part in torch.arange(rows).tensor_split(min(rows, parts)):
            states, logits = self._run({name: tensor[part] for name, tensor in batch.items()})
            # The squared errors' gradients are given rather than found: their graph would hold four times the states.
            gradients: list[Tensor | None] = [
                (state.detach() - target[part]) * mask[part] * (2 / square)
                for state, target, square in zip(states, target_states, squares, strict=True)
            ]
            if logits is not None:
                log_target = targets["logits"][part].log_softmax(-1)
                divergence = F.kl_div(logits.log_softmax(-1), log_target, log_target=True, reduction="sum")
                states.append(divergence / rows)
                gradients.append(None)
            return_freed_memory()  # states lie between what the layers left
            torch.autograd.backward(states, gradients, inputs=list(parameters))

    def _run(self, batch: Inputs) -> tuple[list[Tensor], Tensor | None]:
        """Hidden states after every layer, and the logits of a model that classifies texts."""
        states: list[Tensor] = []
        handles = [
            layer.register_forward_hook(lambda module, args, output: states.append(output_of_layer(output)))
            for layer in self._layers
        ]
        try:
            logits = getattr(self._model(**batch), "logits", None)
        finally:
            for handle in handles:
                handle.remove()
        is_classifier = logits is not None and logits.ndim == 2 and logits.shape[-1] > 1
        return states, logits if is_classifier else None

    def _factors(
        self, scales: Sequence[LayerScales], changes: Sequence[LayerScales], levels: Tensor, tuned: int
    ) -> Iterator[tuple[nn.Linear, Callable[[], Tensor], bool]]:
        """What scales every matrix, for `scaled_linears`. `levels` int64 `[N, M]` are those of the shards."""
        for linears, scale, change, chosen in zip(self._linears, scales, changes, levels, strict=True):
            for matrix in self._matrices:
                yield (
                    linears[matrix.name],
                    _factor(scale[matrix.name], change[matrix.name], chosen, tuned),
                    matrix.by_columns,
                )


def _tuned(scale: Tensor, change: Tensor, level: int | slice = slice(None)) -> Tensor:
    """The optimizer changes all parameters at one rate: what this is for a fidelity's logarithm differs."""
    rates = torch.tensor([LEARNING_RATES.get(bits, 0.0) for bits in FIDELITIES])[:, None, None]
    return scale * (change * rates[level]).exp()


def _factor(scale: Tensor, change: Tensor, chosen: Tensor, tuned: int) -> Callable[[], Tensor]:
    """The scales of all slices at the levels chosen for them, `[M * rows]`. Only the level tuned has gradients."""
    slices = torch.arange(len(chosen))
    fixed = _tuned(scale, change).detach()[chosen, slices]
    is_tuned = (chosen == tuned)[:, None]
    return lambda: torch.where(is_tuned, _tuned(scale[tuned], change[tuned], tuned), fixed).flatten()


def fidelity_rounds(shape: tuple[int, int], generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
    """For each round the index into `FIDELITIES` that is tuned, and int64 `[N, M]` that of every shard.

    All shards are at one of `ROUNDS` and, in the round after, half of them at random ones that are not lower.
    """
    for bits in itertools.cycle(ROUNDS):
        tuned = FIDELITIES.index(bits)
        uniform = torch.full(shape, tuned)
        yield tuned, uniform
        other = torch.randint(tuned, len(FIDELITIES), shape, generator=generator)
        yield tuned, torch.where(torch.rand(shape, generator=generator) < 0.5, other, uniform)


def _schedule(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / RISING_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2


def _shuffled_forever(count: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(count, generator=generator).tolist()

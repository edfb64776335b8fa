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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sti_hf.model.architecture import Architecture
from sti_hf.model.layer_runner import layers_of
from sti_hf.process_memory import return_freed_memory
from sti_hf.shards.layout import FIDELITIES
from sti_hf.shards.quantizers.calibrated.frozen_linear import scaled_linears
from sti_hf.shards.quantizers.calibrated.objectives import Objective
from sti_hf.shards.quantizers.calibrated.outliers import SparseWeights
from sti_hf.shards.quantizers.calibrated.recomputation import recomputed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TuningSettings:
    """What is tuned, and how much.

    - `learning_rates`: largest step of a scale's logarithm, by fidelity. It is a cosine's over the steps, after a
      short rise. Scales of fidelities without one stay as fitted.
    - `rounds`: the fidelity of each pair of rounds, uniform and mixed, over and over.
    - `passes`: how often every batch is seen, if nothing else is asked for.
    """

    learning_rates: Mapping[int, float]
    rounds: tuple[int, ...]
    passes: int


ENCODER_TUNING = TuningSettings({2: 1e-2, 3: 2e-3}, rounds=(2, 2, 2, 3), passes=10)
"""The lower a fidelity, the more there is to tune: from 4 bits on tuning fits the texts and nothing else."""

LANGUAGE_TUNING = TuningSettings({2: 2e-2, 3: 1e-2, 4: 3e-3}, rounds=(2, 3, 2, 4), passes=4)

STEPS_OF_ROUND = 4
RISING_STEPS = 5
ADAM_BETAS = (0.9, 0.98)

LayerScales = dict[str, Tensor]
"""By matrix, float32 `[len(FIDELITIES), M, rows]`: the scales of every fidelity, ones for the full weights."""


class ScaleTuner:
    """Tunes the scales of a model towards an objective."""

    def __init__(
        self, model: PreTrainedModel, architecture: Architecture, objective: Objective, settings: TuningSettings
    ) -> None:
        self._matrices = architecture.matrices
        self._linears = architecture.linears(model)
        self._layers = list(layers_of(model))
        self._objective = objective
        self._settings = settings
        rates = [settings.learning_rates.get(bits, 0.0) for bits in FIDELITIES]
        self._rates = torch.tensor(rates)[:, None, None]

    def tune(
        self,
        scales: Sequence[LayerScales],
        outliers: Sequence[SparseWeights],
        batches: int,
        set_codebook_values: Callable[[Tensor], None],
        steps: int,
        seed: int,
        progress: Callable[[], None],
    ) -> list[LayerScales]:
        """The scales of every layer, tuned on so many `batches` of the objective.

        `outliers` are those of every matrix of the first layer, then of the next.
        `set_codebook_values(fidelities)` gives the model's layers the codebook values, not scaled, of shards at
        `fidelities` int64 `[N, M]` (full: the weights), without the outliers. `progress` is called after each step.
        """
        changes = [{name: torch.zeros_like(each).requires_grad_() for name, each in layer.items()} for layer in scales]
        parameters = [change for layer in changes for change in layer.values()]
        optimizer = torch.optim.Adam(parameters, betas=ADAM_BETAS)
        generator = torch.Generator().manual_seed(seed)
        order = _shuffled_forever(batches, generator)
        slices = next(iter(scales[0].values())).shape[1]
        rounds = fidelity_rounds((len(scales), slices), generator, self._settings.rounds)
        for first in range(0, steps, STEPS_OF_ROUND):
            tuned, levels = next(rounds)
            set_codebook_values(torch.tensor(FIDELITIES)[levels])
            factors = self._factors(scales, changes, levels, tuned)
            with scaled_linears(factors, outliers), recomputed(self._layers[:-1]):  # the last is next anyway
                for step in range(first, min(steps, first + STEPS_OF_ROUND)):
                    optimizer.param_groups[0]["lr"] = _schedule(step, steps)
                    optimizer.zero_grad()
                    self._objective.backward(next(order), parameters)
                    optimizer.step()
                    return_freed_memory()  # batches differ in length: freed blocks of one do not fit the next
                    progress()
        return [
            {name: self._tuned(each, change[name]).detach() for name, each in layer.items()}
            for layer, change in zip(scales, changes, strict=True)
        ]

    def _factors(
        self, scales: Sequence[LayerScales], changes: Sequence[LayerScales], levels: Tensor, tuned: int
    ) -> Iterator[tuple[nn.Linear, Callable[[], Tensor], bool]]:
        """What scales every matrix, for `scaled_linears`. `levels` int64 `[N, M]` are those of the shards."""
        for linears, scale, change, chosen in zip(self._linears, scales, changes, levels, strict=True):
            for matrix in self._matrices:
                yield (
                    linears[matrix.name],
                    self._factor(scale[matrix.name], change[matrix.name], chosen, tuned),
                    matrix.by_columns,
                )

    def _tuned(self, scale: Tensor, change: Tensor, level: int | slice = slice(None)) -> Tensor:
        """The optimizer changes all parameters at one rate: what this is for a fidelity's logarithm differs."""
        return scale * (change * self._rates[level]).exp()

    def _factor(self, scale: Tensor, change: Tensor, chosen: Tensor, tuned: int) -> Callable[[], Tensor]:
        """Scales of all slices at the levels chosen for them, `[M * rows]`. Only the level tuned has gradients."""
        slices = torch.arange(len(chosen))
        fixed = self._tuned(scale, change).detach()[chosen, slices]
        is_tuned = (chosen == tuned)[:, None]
        return lambda: torch.where(is_tuned, self._tuned(scale[tuned], change[tuned], tuned), fixed).flatten()


def fidelity_rounds(
    shape: tuple[int, int], generator: torch.Generator, rounds: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """For each round the index into `FIDELITIES` that is tuned, and int64 `[N, M]` that of every shard.

    All shards are at one of `rounds` and, in the round after, half of them at random ones that are not lower.
    """
    for bits in itertools.cycle(rounds):
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

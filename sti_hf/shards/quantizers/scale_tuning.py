"""Row scales tuned by gradient descent, so that the quantized model's hidden states and outputs follow the full one's.

Codes and codebooks stay. A row scale is one factor on an output of a linear layer (on an input, where a slice is
columns), so a step needs no gradient of a weight: it costs a forward and a backward to the activations.

Shards change fidelity independently. Scales tuned with the whole model at 2 bits learn to make up for one another's
errors, and raising half of the shards then does harm. So in every other round of steps some shards are at random
higher fidelities. Only the scales of the lowest are tuned: those of 6 bits shall not make up for the errors of 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from sti_hf.architectures.base import Architecture
from sti_hf.shards.layout import FIDELITIES
from sti_hf.shards.quantizers.calibration_pass import Batch, output_of_layer, token_mask
from sti_hf.shards.quantizers.scratch import Scratch

SHARES = {2: 0.42, 3: 0.26, 4: 0.16, 5: 0.08, 6: 0.08}
"""Share of the steps that a fidelity gets: the lower the bits, the more there is to tune."""

LEARNING_RATES = {2: 1e-2, 3: 5e-3, 4: 3e-3, 5: 1e-3, 6: 5e-4}
"""Largest step of a scale's logarithm, by fidelity. It is a cosine's over the steps, after a short rise."""

STEPS_OF_ROUND = 4
RISING_STEPS = 5
ADAM_BETAS = (0.9, 0.98)

TOKENS_AT_ONCE = 128
"""A batch goes through the model in parts of about so many tokens, whose gradients add up: memory is a part's."""

LayerScales = Mapping[str, Tensor]
"""By matrix, float32 `[len(FIDELITIES), M, rows]`: the scales of every fidelity, ones for the full weights."""


def steps_of(bits: int, total: int) -> int:
    """How many of `total` steps tune the scales of fidelity `bits`."""
    return round(SHARES[bits] * total)


class ScaleTuner:
    """Tunes the scales of a model towards what it computed when the tuner was made, with its full weights."""

    def __init__(
        self, model: PreTrainedModel, architecture: Architecture, batches: Sequence[Batch], scratch: Scratch
    ) -> None:
        self._model = model
        self._matrices = architecture.matrices
        layers: Any = model.base_model.get_submodule(architecture.layers)
        self._layers: Sequence[nn.Module] = layers
        self._batches = batches
        self._scratch = scratch
        for index, batch in enumerate(batches):
            with torch.no_grad():
                states, logits = self._run(batch)
            targets = {str(layer): state.half() for layer, state in enumerate(states)}
            scratch.save(f"targets.{index}", targets if logits is None else {**targets, "logits": logits})

    def tune(
        self,
        bits: int,
        scales: Sequence[LayerScales],
        set_codebook_values: Callable[[Tensor], None],
        steps: int,
        seed: int,
        progress: Callable[[], None],
    ) -> list[dict[str, Tensor]]:
        """Tuned scales of fidelity `bits`, float32: for each layer, by matrix, `[M, rows]`.

        `set_codebook_values(fidelities)` gives the model's layers the codebook values, not scaled, of shards at
        `fidelities` int64 `[N, M]` (full: the weights). `progress` is called after each step.
        """
        level = FIDELITIES.index(bits)
        logarithms = [
            {name: torch.zeros_like(scale[level]).requires_grad_() for name, scale in layer.items()}
            for layer in scales
        ]
        parameters = [logarithm for layer in logarithms for logarithm in layer.values()]
        optimizer = torch.optim.Adam(parameters, betas=ADAM_BETAS)
        generator = torch.Generator().manual_seed(seed)
        order = _shuffled_forever(len(self._batches), generator)
        slices = next(iter(scales[0].values())).shape[1]
        rounds = fidelity_rounds(level, (len(scales), slices), generator)
        for first in range(0, steps, STEPS_OF_ROUND):
            levels = next(rounds)
            set_codebook_values(torch.tensor(FIDELITIES)[levels])
            with self._scaled(scales, logarithms, level, levels):
                for step in range(first, min(steps, first + STEPS_OF_ROUND)):
                    optimizer.param_groups[0]["lr"] = LEARNING_RATES[bits] * _schedule(step, steps)
                    optimizer.zero_grad()
                    for loss in self._losses(next(order)):
                        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
                    optimizer.step()
                    progress()
        return [
            {name: scale[level] * logarithm[name].detach().exp() for name, scale in layer.items()}
            for layer, logarithm in zip(scales, logarithms, strict=True)
        ]

    def _losses(self, index: int) -> Iterator[Tensor]:
        """The loss of a batch, in parts: the relative squared error of every layer's hidden states, and the divergence
        of the predicted classes.
        """
        batch, targets = self._batches[index], self._scratch.load(f"targets.{index}")
        target_states = [targets[str(layer)] for layer in range(len(self._layers))]
        rows, tokens = target_states[0].shape[:2]
        mask = token_mask(batch, target_states[0])
        squares = [target[mask].float().square().sum() for target in target_states]
        at_once = max(1, TOKENS_AT_ONCE // tokens)
        for part in (slice(first, first + at_once) for first in range(0, rows, at_once)):
            states, logits = self._run({name: tensor[part] for name, tensor in batch.items()})
            loss = torch.zeros(())
            for state, target, square in zip(states, target_states, squares, strict=True):
                difference = state[mask[part]] - target[part][mask[part]].float()
                loss = loss + difference.square().sum() / square
            if logits is not None:
                log_target = targets["logits"][part].log_softmax(-1)
                divergence = F.kl_div(logits.log_softmax(-1), log_target, log_target=True, reduction="sum")
                loss = loss + divergence / rows
            yield loss

    def _run(self, batch: Batch) -> tuple[list[Tensor], Tensor | None]:
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

    @contextmanager
    def _scaled(
        self, scales: Sequence[LayerScales], logarithms: Sequence[Mapping[str, Tensor]], tuned: int, levels: Tensor
    ) -> Iterator[None]:
        """Inside, every matrix is scaled: its inputs where a slice is columns, else its outputs without the bias.

        `levels` int64 `[N, M]` says which of `FIDELITIES` a shard has, `tuned` which one the logarithms belong to.
        """
        handles = []
        for layer, scale, logarithm, chosen in zip(self._layers, scales, logarithms, levels, strict=True):
            for matrix in self._matrices:
                module = layer.get_submodule(matrix.module)
                fixed = scale[matrix.name][chosen, torch.arange(len(chosen))]
                factor = _factor(fixed, logarithm[matrix.name], chosen == tuned)
                if matrix.by_columns:
                    handles.append(module.register_forward_pre_hook(_scale_inputs(factor)))
                else:
                    handles.append(module.register_forward_hook(_scale_outputs(factor)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _factor(fixed: Tensor, logarithm: Tensor, is_tuned: Tensor) -> Callable[[], Tensor]:
    """The scales of all slices, `[M * rows]`, of which those of the slices marked follow the logarithm."""
    return lambda: torch.where(is_tuned[:, None], fixed * logarithm.exp(), fixed).flatten()


def _scale_inputs(factor: Callable[[], Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
    return lambda module, args: args[0] * factor()


def _scale_outputs(factor: Callable[[], Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if module.bias is None:
            return output * factor()
        bias = module.get_parameter("bias").detach()
        return (output - bias) * factor() + bias

    return hook


def fidelity_rounds(lowest: int, shape: tuple[int, int], generator: torch.Generator) -> Iterator[Tensor]:
    """For each round int64 `[N, M]`: index into `FIDELITIES` of every shard, none under `lowest`.

    All shards are at the lowest and, in the round after, a random part of them at random other ones.
    """
    uniform = torch.full(shape, lowest)
    while True:
        yield uniform
        other = torch.randint(lowest + 1, len(FIDELITIES), shape, generator=generator)
        is_other = torch.rand(shape, generator=generator) < torch.rand((), generator=generator)
        yield torch.where(is_other, other, uniform)


def _schedule(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / RISING_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2


def _shuffled_forever(count: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(count, generator=generator).tolist()

"""Distributions of the next token: their divergence, and what they say of a text.

Positions are taken a few at a time, so that a large vocabulary costs no more memory than the logits themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sti_hf.model.layer_runner import HiddenStates, LayerRunner, layers_of
from sti_hf.profiling.outputs import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROJECTIONS = 2
"""Random projections of every text's distributions."""

CHUNK_BYTES = 32 << 20
"""Logits whose distributions are in memory at a time."""


def kl_divergence(full: Tensor, logits: Tensor) -> Tensor:
    """KL(full || logits) of next-token distributions, nats: logits `[batch, tokens, vocabulary]` both, float32
    `[batch, tokens]`."""
    divergences = torch.empty(logits.shape[:2])
    for some in _chunks(logits):
        expected, found = (_log_probabilities(each[:, some]) for each in (full, logits))
        divergences[:, some] = (expected.exp() * (expected - found)).sum(-1)
    return divergences


def token_losses(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Negative log-likelihood, nats, of every token but the first: float32 `[batch, tokens - 1]`.

    `logits` is `[batch, tokens, vocabulary]` for `input_ids` int64 `[batch, tokens]`.
    """
    losses = torch.empty(input_ids.shape[0], input_ids.shape[1] - 1)
    following = input_ids[:, 1:]
    for some in _chunks(logits[:, :-1]):
        chosen = following[:, some]
        flat = logits[:, :-1][:, some].float().flatten(0, 1)
        losses[:, some] = F.cross_entropy(flat, chosen.flatten(), reduction="none").view(chosen.shape)
    return losses


class NextTokenKL:
    """Outputs of a causal language model, by KL(full || lowered) of the next token, a mean over the positions that the
    attention mask keeps.

    Plans that are run are measured by just that. Effects are slopes, so their directions are of the embedding
    `sqrt(2 q)` of distributions q, in which squared distances are KL to the second order: `KL(p || q) = 2 * sum_v
    (sqrt(p_v) - sqrt(q_v))^2 + ..` They need not know the full model's answers, and stay bounded where a model
    collapses.
    """

    def directions(self, output: Any, batch: Batch, first_text: int) -> Tensor:
        """Random projections of the embedding, float `[PROJECTIONS, texts]`, differentiable: each's squared change
        is, on average, the KL."""
        logits = output.logits
        weights = _position_weights(logits, batch).sqrt()
        total = logits.new_zeros(PROJECTIONS, len(logits))
        for some in _chunks(logits):
            seed = first_text * logits.shape[1] + some.start
            total = total + checkpoint(_projected, logits[:, some], weights[:, some], seed, use_reentrant=False)
        return total

    def since(self, model: PreTrainedModel, batches: Sequence[Batch]) -> Callable[[], float]:
        """Mean KL of the model at any time from the model now."""
        before, texts = Remembered(model, batches), sum(len(next(iter(batch.values()))) for batch in batches)

        def moved() -> float:
            total = 0.0
            for index, batch in enumerate(batches):
                logits = before.runner.run(batch)
                divergences = kl_divergence(before.logits(index), logits)
                total += float((divergences * _position_weights(logits, batch)).sum())
            return max(0.0, total / texts)  # equal distributions may differ in rounding

        return moved


class Remembered:
    """What a causal language model says of batches now, whatever becomes of its layers.

    The last layer's outputs are kept; what comes after the layers must stay as it is.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.runner = LayerRunner(model)
        self._states = HiddenStates(self.runner, batches)
        self._states.advance_to(len(layers_of(model)))

    def logits(self, index: int) -> Tensor:
        """Of a batch: float32 `[batch, tokens, vocabulary]`."""
        return self._states.head(index)


def _projected(logits: Tensor, weights: Tensor, seed: int) -> Tensor:
    """Some positions' part of the projections: float `[PROJECTIONS, texts]`."""
    embedded = (0.5 * _log_probabilities(logits)).exp() * math.sqrt(2)
    generator = torch.Generator().manual_seed(seed)
    projections = [torch.randn(logits.shape, generator=generator) for _ in range(PROJECTIONS)]
    parts = [((projection.to(embedded) * embedded).sum(-1) * weights).sum(-1) for projection in projections]
    return torch.stack(parts)


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _position_weights(logits: Tensor, batch: Batch) -> Tensor:
    """What each position counts: float32 `[texts, tokens]`, 1 in sum for a text."""
    mask = batch["attention_mask"] if "attention_mask" in batch else torch.ones(logits.shape[:2])
    return mask.float() / mask.sum(-1, keepdim=True).clamp_min(1)


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Positions of `logits` `[batch, tokens, vocabulary]`, a few at a time."""
    batch, tokens, vocabulary = logits.shape
    step = max(1, CHUNK_BYTES // (4 * max(1, batch) * vocabulary))
    for first in range(0, tokens, step):
        yield slice(first, min(first + step, tokens))

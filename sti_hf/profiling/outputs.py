"""What a model says of a text, in a few numbers, so that two models' answers can be compared without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from sti_hf.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = Mapping[str, Tensor]
"""Padded inputs of a model for some texts, without labels: `input_ids`, `attention_mask` and so on."""

CLASSES = 4
"""Class logits up to this many are compared by all their differences, more by random projections."""

PROJECTIONS = 2
"""Random projections of every text where an output has many values."""


class OutputMeasure(Protocol):
    """How far apart two models' outputs for the same texts are."""

    def directions(self, output: Any, batch: Batch, first_text: int) -> Tensor:
        """The outputs of some texts in a few directions, float `[directions, texts]`, differentiable: the mean square
        of their changes is how far they moved. `first_text` is the number of texts before these."""
        ...

    def since(self, model: PreTrainedModel, batches: Sequence[Batch]) -> Callable[[], float]:
        """Remembers what the model says of texts now: what is returned tells, at any time, how far that has moved."""
        ...


class Projected:
    """Outputs of any head, by the squared length of their change: see `directions`."""

    def directions(self, output: Any, batch: Batch, first_text: int) -> Tensor:
        """As the function of that name."""
        return directions(output, batch, first_text)

    def since(self, model: PreTrainedModel, batches: Sequence[Batch]) -> Callable[[], float]:
        """Mean square of what the directions change."""
        before = read_outputs(model, batches)
        return lambda: float((read_outputs(model, batches) - before).square().mean())


def check_texts(batches: Sequence[Batch]) -> None:
    """Raises `ValueError` where there are no texts, or a batch has labels."""
    if any("labels" in batch for batch in batches):
        raise UnsupportedModelError("Calibration batches must not have labels; remove them from the inputs.")
    if not any(len(next(iter(batch.values()))) for batch in batches):
        raise UnsupportedModelError("There are no calibration texts; give at least one batch.")


def directions(output: Any, batch: Batch, first_text: int) -> Tensor:
    """The outputs of some texts in a few directions, float `[directions, texts]`, differentiable.

    The sum of squares over the directions is (for projections: is on average) the squared length of the output. Class
    logits: their mean does not count, since adding to all of them changes nothing; with two classes that leaves the
    margin. Outputs of tokens: random projections of all tokens that the attention mask keeps, a mean over tokens.
    `first_text` is the number of texts before these: it seeds the projections, which are each text's own.
    """
    parts = [_flat(name, tensor, batch) for name, tensor in _answers(output)]
    if len(parts) == 1 and parts[0].shape[1] <= CLASSES - 1:
        return parts[0].t()
    everything = torch.cat(parts, dim=1)
    generator = torch.Generator().manual_seed(first_text)
    projections = torch.randn(PROJECTIONS, *everything.shape, generator=generator) / math.sqrt(PROJECTIONS)
    return (projections.to(everything) * everything).sum(-1)


def read_outputs(model: torch.nn.Module, batches: Sequence[Batch]) -> Tensor:
    """The outputs of all texts, float32 `[directions, texts]`, as `directions` gives them."""
    read, texts = [], 0
    with torch.no_grad():
        for batch in batches:
            read.append(directions(model(**batch), batch, texts))
            texts += read[-1].shape[1]
    return torch.cat(read, dim=1).float()


def _answers(output: Any) -> list[tuple[str, Tensor]]:
    """What an output answers with: its logits if it has some, else the last hidden states, else its first tensor."""
    named = [
        (name, value) for name, value in output.items() if isinstance(value, Tensor) and value.is_floating_point()
    ]
    logits = [(name, value) for name, value in named if name.endswith("logits")]
    hidden = [(name, value) for name, value in named if name == "last_hidden_state"]
    return logits or hidden or named[:1]


def _flat(name: str, answer: Tensor, batch: Batch) -> Tensor:
    """An answer as `[texts, values]`, without what does not count in it."""
    texts = len(answer)
    of_tokens = answer.ndim == 3 or name in ("start_logits", "end_logits")
    if not of_tokens:
        return _contrasts(answer) if name == "logits" and answer.shape[1] > 1 else answer
    values = answer if answer.ndim == 3 else answer[..., None]
    if name.endswith("logits") and answer.ndim == 3:
        values = values - values.mean(-1, keepdim=True)
    mask = batch["attention_mask"].to(values) if "attention_mask" in batch else values.new_ones(values.shape[:2])
    weights = (mask / mask.sum(-1, keepdim=True).clamp_min(1)).sqrt()
    return (values * weights[..., None]).reshape(texts, -1)


def _contrasts(logits: Tensor) -> Tensor:
    """Logits `[texts, C]` as C - 1 numbers: their coordinates in the plane of logits that sum to 0."""
    count = logits.shape[1]
    basis = torch.zeros(count, count - 1)
    for index in range(1, count):
        basis[:index, index - 1] = 1.0
        basis[index, index - 1] = -float(index)
    basis /= basis.norm(dim=0)
    return logits @ basis.to(logits)

"""Language modelling as a task: windows of running text, and how likely a model takes them to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sti_hf.errors import SourceError, UnsupportedModelError
from sti_hf.forking import cached_property
from sti_hf.profiling.examples import Batch, check_choice, chosen_rows
from sti_hf.profiling.metrics import Score
from sti_hf.profiling.next_tokens import token_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 256
"""Tokens of a window."""

WINDOWS = 32
"""So many windows are enough to profile on."""

LARGEST_LOSS = 700.0
"""Nats: the exponential of more than that is no number."""


def load_windows(
    file: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: int = WINDOW,
    part: str = "all",
    samples: int | None = WINDOWS,
    seed: int = 0,
) -> Tensor:
    """Windows of a UTF-8 text file, which is one running text: int64 `[windows, tokens]`, in the text's order.

    Windows stand side by side; what is left at the end has no part in them. Where the tokenizer begins texts with a
    token of its own, each window does. `part`, `samples` and `seed` choose windows as `load_examples` does examples.

    Raises `ValueError` with one sentence where the file is not there, no such text, or too short for 2 windows.
    """
    check_choice(part, samples)
    text = _read(Path(file))
    begin = _beginning(tokenizer)
    own = tokens - len(begin)
    if own < 2:
        raise SourceError(f"A window must have at least {2 + len(begin)} tokens, not {tokens!r}.")
    encoded: Any = tokenizer(text, add_special_tokens=False, verbose=False)
    ids = torch.tensor(encoded["input_ids"], dtype=torch.long)
    count = len(ids) // own
    rows = chosen_rows(count, part, samples, seed)
    if len(rows) < 2:
        raise SourceError(
            f"{file} has {len(ids)} tokens, which make {count} windows of {tokens}, and {len(rows)} of these in part "
            f"{part!r} of at most {samples} samples; at least 2 are needed: give a longer text, more samples, or "
            "shorter windows."
        )
    windows = ids[: count * own].view(count, own)[torch.from_numpy(rows)]
    return torch.cat((torch.tensor(begin, dtype=torch.long).expand(len(rows), -1), windows), dim=1)


def window_batches(windows: Tensor, batch_size: int) -> list[Batch]:
    """Windows int64 `[windows, tokens]` as a model takes them."""
    if batch_size < 1:
        raise SourceError(f"batch_size must be at least 1, not {batch_size!r}.")
    places = np.arange(len(windows))
    return [
        Batch({"input_ids": some, "attention_mask": torch.ones_like(some)}, places[first : first + len(some)])
        for first, some in zip(range(0, len(windows), batch_size), windows.split(batch_size))
    ]


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Raises `UnsupportedModelError` where what the model says of a token depends on those that follow it."""
    ids = torch.arange(2, 6).remainder(model.config.vocab_size)[None]
    changed = ids.clone()
    changed[0, -1] = 0
    one, other = (model(input_ids=each, attention_mask=torch.ones_like(each)).logits for each in (ids, changed))
    if one.ndim != 3 or not torch.allclose(one[:, :-1], other[:, :-1], rtol=1e-4, atol=1e-4):
        raise UnsupportedModelError(
            f"This {type(model).__name__} sees the tokens that follow a position, so it cannot be asked for the next "
            "one; take a decoder (config.is_decoder), or profile it on a task."
        )


@dataclass(frozen=True, eq=False)
class LanguageEvaluation:
    """What language models are compared by: the perplexity of some text.

    The metric that leads is the full model's perplexity divided by the model's, at most 1: the likelihood of a token
    relative to the full model's, which the planner's `max_loss` is in hundredths of. Beside it are put down the
    perplexity itself and the accuracy of the likeliest next token.

    - `full_loss`: mean negative log-likelihood of a token under the full model, nats.
    """

    batches: Sequence[Batch]
    full_loss: float

    name = "language modelling"
    leading = "relative_likelihood"
    recorded = ("perplexity", "next_token_accuracy")

    @classmethod
    def prepare(cls, model: PreTrainedModel, batches: Sequence[Batch]) -> LanguageEvaluation:
        """The evaluation on these windows, and `model` for the full model."""
        return cls(batches, cls(batches, 0.0).score(lambda index: model(**batches[index].inputs).logits).loss)

    @torch.no_grad()
    def score(self, logits_of: Callable[[int], Tensor]) -> Score:
        """The score of what gives the logits `[batch, tokens, vocabulary]` of a batch, by its index."""
        loss, right, count = 0.0, 0, 0
        for index, batch in enumerate(self.batches):
            logits, ids = logits_of(index), batch.inputs["input_ids"]
            losses = token_losses(logits, ids)
            loss += float(losses.double().sum())
            right += int((logits[:, :-1].argmax(-1) == ids[:, 1:]).sum())
            count += losses.numel()
        return self._score(loss / count, right / count)

    @cached_property
    def chance(self) -> float:
        """What the frequencies of the text's own tokens score: the best answer that is the same everywhere."""
        following = torch.cat([batch.inputs["input_ids"][:, 1:].flatten() for batch in self.batches])
        shares = following.bincount().double() / len(following)
        return self._score(float(torch.special.entr(shares).sum()), float(shares.max())).value

    @property
    def full_perplexity(self) -> float:
        """The full model's."""
        return perplexity(self.full_loss)

    def _score(self, loss: float, accuracy: float) -> Score:
        value = float(np.exp(min(0.0, self.full_loss - loss)))
        metrics = {self.leading: value, "perplexity": perplexity(loss), "next_token_accuracy": accuracy}
        return Score(value, loss, metrics)


def perplexity(loss: float) -> float:
    """Of a mean negative log-likelihood in nats."""
    return float(np.exp(min(loss, LARGEST_LOSS)))


def _read(file: Path) -> str:
    if not file.is_file():
        raise SourceError(f"There is no text file {file}.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{file} is not a text file in UTF-8.") from error


def _beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text."""
    encoded: Any = tokenizer("a")["input_ids"]
    first = [token for token in (tokenizer.bos_token_id, tokenizer.cls_token_id) if token is not None]
    return list(encoded[:1]) if encoded and encoded[0] in first else []

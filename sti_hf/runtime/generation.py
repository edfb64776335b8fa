"""Texts that a model writes: which plan each key/value cache was made by, and what the last text took."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from sti_hf.planning import ExecutionPlan
from sti_hf.runtime.timeline import RunTimeline

TOKENS_KEPT = 1000
"""Of the last text, at most so many tokens are told of."""


@dataclass(frozen=True)
class Continued:
    """What a forward goes on from: a cache of the submodel (n, m) with so many `tokens`, and the plan that ran when it
    was begun, where that is known."""

    submodel: tuple[int, int]
    tokens: int
    plan: ExecutionPlan | None


@dataclass(frozen=True)
class Generation:
    """What a text took: `prompt` the forward of its prompt, `steps` those of its last `TOKENS_KEPT` further tokens."""

    prompt: RunTimeline
    steps: tuple[RunTimeline, ...]

    @property
    def time_to_first_token(self) -> float:
        """Seconds."""
        return self.prompt.total

    @property
    def token_seconds(self) -> np.ndarray:
        """float64 `[tokens]`: seconds of each further token."""
        return np.array([step.total for step in self.steps])

    @property
    def bytes_read(self) -> int:
        """Bytes of shards that were read for all of it."""
        return self.prompt.bytes_read + sum(step.bytes_read for step in self.steps)


@dataclass
class _Text:
    """The plan by which a text's cache was begun, and what its forwards took until now."""

    plan: ExecutionPlan
    prompt: RunTimeline | None = None
    steps: deque[RunTimeline] = field(default_factory=lambda: deque(maxlen=TOKENS_KEPT))


class Generations:
    """The key/value caches that are in use, with the plan that each was begun by, and the last text that was written.

    A cache has the shape of its submodel: its further tokens run by the same plan, or one of that submodel.
    """

    def __init__(self) -> None:
        self._texts: WeakKeyDictionary[Any, _Text] = WeakKeyDictionary()
        self._noted: tuple[_Text, bool] | None = None
        self._last: _Text | None = None
        self._most_cached = 0

    def plan_of(self, cache: Any) -> ExecutionPlan | None:
        """The plan by which a cache was begun; None where nobody saw that."""
        cache = _self_attention(cache)
        text = self._texts.get(cache) if _is_cache(cache) else None
        return None if text is None else text.plan

    def note_cache(self, cache: Any, plan: ExecutionPlan, is_step: bool) -> None:
        """Takes note of the plan that has filled a cache with a prompt, or with further tokens (`is_step`)."""
        cache = _self_attention(cache)
        self._noted = None
        if not _is_cache(cache):
            return
        text = self._texts.setdefault(cache, _Text(plan))
        if not is_step:
            text.plan = plan
        self._noted = text, is_step
        self._most_cached = max(self._most_cached, self.cached_bytes)

    def note_run(self, run: RunTimeline) -> None:
        """Takes note of what the forward took whose cache was noted last: a text begins with that of its prompt."""
        if self._noted is None:
            return
        (text, is_step), self._noted = self._noted, None
        if is_step and text.prompt is not None:
            text.steps.append(run)
        else:
            text.prompt = run
            text.steps.clear()
        self._last = text

    @property
    def last(self) -> Generation | None:
        """What the text took that was last written with a cache; None before the first."""
        text = self._last
        return None if text is None or text.prompt is None else Generation(text.prompt, tuple(text.steps))

    @property
    def cached_bytes(self) -> int:
        """Bytes of the keys and values in all caches that are in use."""
        return sum(tensor.nbytes for cache in list(self._texts) for tensor in _tensors(cache))

    @property
    def most_cached(self) -> int:
        """The most bytes of keys and values that there were after a forward."""
        return max(self._most_cached, self.cached_bytes)


def _self_attention(cache: Any) -> Any:
    return getattr(cache, "self_attention_cache", cache)


def _is_cache(cache: Any) -> bool:
    return cache is not None and hasattr(cache, "layers")


def _tensors(cache: Any) -> Iterable[Tensor]:
    for layer in cache.layers:
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(tensor, Tensor):
                yield tensor

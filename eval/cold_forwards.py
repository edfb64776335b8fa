"""A store's model in a live app, and how long its forwards take."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from sti_hf import STIConfig
from sti_hf.integrations.model_classes import stock_class
from sti_hf.shards.store import ShardStore

WARM_UP = 2
"""The first inference fills the preload buffer, the second finds the code paths of a full run warm."""

LATE = 1.05
"""Times T: later than this is late."""


@contextmanager
def running(store: ShardStore, config: STIConfig) -> Iterator[Any]:
    """The store's model, running from shards."""
    model_class: Any = stock_class(AutoConfig.from_pretrained(store.path))
    model = model_class.from_pretrained(store.path, sti_config=config)
    try:
        yield model
    finally:
        model.sti.close()


@contextmanager
def expecting_misses() -> Iterator[None]:
    """A plan that misses T is a row of the table here, and no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No plan of .* meets the target latency")
        yield


def timed_forward(model: Any, inputs: Mapping[str, Tensor]) -> float:
    """Seconds of one forward."""
    begun = time.perf_counter()
    model(**inputs)
    return time.perf_counter() - begun

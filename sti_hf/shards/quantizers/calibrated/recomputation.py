"""Layers whose activations are computed twice rather than kept: memory for time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, these layers keep nothing but their inputs for the backward pass, which runs each of them once more.

    Values and gradients are the same, bit for bit. Layers must not draw random numbers (dropout).
    """
    before = [(layer, layer.forward) for layer in layers]
    for layer, forward in before:
        layer.forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer, _ in before:
            del layer.forward

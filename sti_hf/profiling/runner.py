"""Runs forwards of a store's model, all of it preloaded, and tells what they took."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from sti_hf.config import STIConfig
from sti_hf.model import get_architecture
from sti_hf.planning import ExecutionPlan, OnePlan
from sti_hf.planning.baselines import preloaded_model
from sti_hf.profiling.compute import BITS
from sti_hf.profiling.consistency import Measurement, Point
from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.session import STISession
from sti_hf.runtime.timeline import RunTimeline
from sti_hf.shards.layout import FULL
from sti_hf.shards.store import ShardStore

LoadModel = Callable[[STISession], PreTrainedModel]
"""Builds the store's model on a session."""

TOKENS = (16, 64, 128, 256, 512)
BATCHES = (1, 2, 4, 8)
"""Of images, whose tokens are always as many."""

LAYERS = 4
WARM_UP = 1
FORWARDS = 3
"""Of each kind in a pass, for a median."""


class Runner:
    """Runs forwards of the store's model with a few layers, all preloaded."""

    def __init__(self, store: ShardStore, session: STISession, model: PreTrainedModel) -> None:
        self.store, self.session, self.model = store, session, model
        self._architecture = get_architecture(model.config)
        # Without the head: one over the vocabulary is streamed, which is planned for by its bytes.
        base: Any = model.base_model
        takes_inputs = self._architecture.main_inputs[0] in inspect.signature(base.forward).parameters
        self._module: Any = base if takes_inputs else model

    def token_counts(self) -> list[int]:
        """The token counts to measure at, up to the model's longest input: attention's cost cannot be extrapolated."""
        own = self._architecture.longest_input(self.model.config)
        if self._architecture.exact_tokens:
            return [own * batch for batch in BATCHES]
        longest = max(1, min(TOKENS[-1], own))
        return [*(count for count in TOKENS if count < longest), longest]

    def widths(self) -> list[int]:
        """The numbers of slices to measure at."""
        slices = self.store.grid.slices
        return sorted({max(1, slices // 4), max(1, slices // 2), slices})

    def whole_layer(self, tokens: int) -> Point:
        """All slices, at the token count nearest to this."""
        nearest = min(self.token_counts(), key=lambda count: abs(count - tokens))
        return Point(nearest, self.store.grid.slices, BITS)

    def __call__(self, point: Point) -> Measurement:
        """Runs a few forwards at a point."""
        layers = 1 if point.bits == FULL else min(LAYERS, self.store.grid.layers)
        self.session.use(preloaded_plan(self.store, layers, point.width, point.bits))
        inputs = self._inputs(point.tokens)
        timed = [self._run(inputs) for _ in range(WARM_UP + FORWARDS)][WARM_UP:]
        runs = [run for run, _ in timed]
        return Measurement(
            layer=median(float(np.median(run.compute)) for run in runs),
            decompress=median(float(np.median(run.decompress)) for run in runs),
            fixed=max(0.0, median(map(_outside, runs))),
            running=median(cpu / (run.total - run.embedding - float(run.wait.sum())) for run, cpu in timed),
        )

    def _inputs(self, tokens: int) -> dict[str, torch.Tensor]:
        config, architecture = self.model.config, self._architecture
        batch = tokens // architecture.longest_input(config) if architecture.exact_tokens else 1
        return architecture.example_inputs(config, batch, tokens // batch)

    def _run(self, inputs: dict[str, torch.Tensor]) -> tuple[RunTimeline, float]:
        """What a forward took, and the seconds for which this thread was running in it."""
        begun = time.thread_time()
        self._module(**inputs)
        assert self.session.last_run is not None
        return self.session.last_run, time.thread_time() - begun


@contextmanager
def running(store: ShardStore, load_model: LoadModel, path: ComputePath) -> Iterator[Runner]:
    """A runner on one compute path, whose session is closed at the end."""
    session = STISession(store, STIConfig(), OnePlan(preloaded_plan(store, 1, store.grid.slices, BITS)), path)
    try:
        yield Runner(store, session, load_model(session))
    finally:
        session.close()


def preloaded_plan(store: ShardStore, layers: int, width: int, bits: int) -> ExecutionPlan:
    """The first layers and slices of a store at one fidelity, all of it preloaded, run as strategy "sti" is."""
    return replace(preloaded_model(store.layouts, layers=layers, slices=width, bits=bits), strategy="sti")


def _outside(run: RunTimeline) -> float:
    """Seconds of a forward that its layers do not take, nor reading; with what the first layer takes longer than the
    others, since memory is new to it."""
    layers = len(run.compute) * float(np.median(run.compute)) + float(run.decompress.sum())
    return run.total - run.embedding - float(run.wait.sum()) - layers

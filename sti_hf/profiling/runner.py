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
from sti_hf.planning import ExecutionPlan, OnePlan, Workload
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

SHORTEST, SHORT = (1, 16), 64
"""Tokens of texts whose attention takes hardly any time: one, as when a text is written, to those that are measured in
batches."""

LONG = (128, 512)
"""Tokens of texts that are measured one by one, for their attention."""

TEXTS, IMAGES = (1, 2, 8), (1, 2, 4, 8)
"""Batches. Images always have as many tokens, so that their attention grows with their number."""

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

    def short(self) -> list[Workload]:
        """Batches of short texts, or of images, ascending in all tokens."""
        longest = self._longest()
        if self._architecture.exact_tokens:
            return [Workload(longest, batch) for batch in IMAGES]
        tokens = min(SHORT, longest)
        shortest = [Workload(count) for count in SHORTEST if count < tokens]
        return [*shortest, *(Workload(tokens, batch) for batch in TEXTS)]

    def long(self) -> list[Workload]:
        """Single texts whose attention counts, up to the model's longest input; no images."""
        if self._architecture.exact_tokens:
            return []
        counts = sorted({min(count, self._longest()) for count in LONG})
        return [Workload(count) for count in counts if count >= 2 * SHORT]

    def _longest(self) -> int:
        return max(1, self._architecture.longest_input(self.model.config))

    def widths(self) -> list[int]:
        """The numbers of slices to measure at."""
        grid = self.store.grid
        return sorted({1, max(1, grid.slices // 2), grid.slices} & set(grid.widths))

    def whole_layer(self, tokens: int) -> Point:
        """All slices, at the batch whose tokens are nearest to these."""
        nearest = min(self.short(), key=lambda workload: abs(workload.all_tokens - tokens))
        return Point(nearest, self.store.grid.slices, BITS)

    def __call__(self, point: Point) -> Measurement:
        """Runs a few forwards at a point."""
        layers = 1 if point.bits == FULL else min(LAYERS, self.store.grid.layers)
        self.session.use(preloaded_plan(self.store, layers, point.width, point.bits))
        workload = point.workload
        inputs = self._architecture.example_inputs(self.model.config, workload.batch, workload.tokens)
        timed = [self._run(inputs) for _ in range(WARM_UP + FORWARDS)][WARM_UP:]
        runs = [run for run, _ in timed]
        return Measurement(
            layer=median(map(_layer, runs)),
            decompress=median(float(np.median(run.decompress)) for run in runs),
            before=max(0.0, median(run.before for run in runs)),
            after=max(0.0, median(map(_after, runs))),
            running=median(cpu / (run.total - run.embedding - float(run.wait.sum())) for run, cpu in timed),
        )

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


def _layers(run: RunTimeline) -> np.ndarray:
    """Seconds of every layer but the last (of the only one), without decompression, with what there is to do from one
    layer to the next."""
    if len(run.compute) == 1:
        return run.compute
    return np.asarray(np.diff(run.start) - run.wait[1:] - run.decompress[:-1])


def _layer(run: RunTimeline) -> float:
    return float(np.median(_layers(run)))


def _after(run: RunTimeline) -> float:
    """Seconds of a forward after its layers, with what the first one takes longer than the others, since memory is new
    to it."""
    return run.after + max(0.0, float(_layers(run)[0]) - _layer(run))

"""Runs forwards of a store's model, all of it preloaded, and tells what they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from transformers import PreTrainedModel

from sti_hf.config import STIConfig
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
LAYERS = 4
WARM_UP = 1
FORWARDS = 3
"""Of each kind in a pass, for a median."""


class Runner:
    """Runs forwards of the store's model with a few layers, all preloaded."""

    def __init__(self, store: ShardStore, session: STISession, model: PreTrainedModel) -> None:
        self.store, self.session, self.model = store, session, model

    def token_counts(self) -> list[int]:
        """The token counts to measure at, up to the model's longest input: attention's cost cannot be extrapolated."""
        # Families with a padding position (RoBERTa, MPNet) take two tokens fewer than they have positions.
        positions = getattr(self.model.config, "max_position_embeddings", TOKENS[-1] + 2)
        longest = max(1, min(TOKENS[-1], positions - 2))
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
        inputs = {
            "input_ids": torch.randint(10, self.model.config.vocab_size, (1, point.tokens)),
            "attention_mask": torch.ones(1, point.tokens, dtype=torch.long),
        }
        timed = [self._run(inputs) for _ in range(WARM_UP + FORWARDS)][WARM_UP:]
        runs = [run for run, _ in timed]
        return Measurement(
            layer=median(float(np.median(run.compute)) for run in runs),
            decompress=median(float(np.median(run.decompress)) for run in runs),
            fixed=max(0.0, median(map(_outside, runs))),
            running=median(cpu / (run.total - run.embedding - float(run.wait.sum())) for run, cpu in timed),
        )

    def _run(self, inputs: dict[str, torch.Tensor]) -> tuple[RunTimeline, float]:
        """What a forward took, and the seconds for which this thread was running in it."""
        begun = time.thread_time()
        # Without the head: one over the vocabulary is streamed, which is planned for by its bytes.
        self.model.base_model(**inputs)
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

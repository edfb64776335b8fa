"""STISession: what `model.sti` is. It owns the plan, the buffers and the reading thread of one model."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from sti_hf.architectures import Architecture, get_architecture
from sti_hf.architectures.base import WORD_EMBEDDINGS
from sti_hf.config import STIConfig
from sti_hf.errors import InfeasibleLatencyError
from sti_hf.planning import ExecutionPlan, Planner, Workload, missed_target
from sti_hf.planning.refinement import LONGER, can_refine, wanted_bits
from sti_hf.runtime.buffers import Buffers
from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.layers import (
    Decompressor,
    ElasticLinear,
    RowGatheredEmbedding,
    StreamedDecoder,
    working_weights,
)
from sti_hf.runtime.scheduler import Scheduler
from sti_hf.runtime.streamer import ShardStreamer
from sti_hf.runtime.tables import TableReader
from sti_hf.runtime.timeline import RunTimeline, run_timeline
from sti_hf.shards.store import ShardStore


class STISession:
    """Runs a model from its store: plan, prefetch, measured timeline, memory.

    One forward runs at a time; other threads wait their turn. Reading begins at once.
    """

    def __init__(
        self, store: ShardStore, config: STIConfig, planner: Planner, path: ComputePath, rate_limit: float = 0.0
    ) -> None:
        self.store, self.config = store, config
        self._planner, self._rate_limit = planner, rate_limit
        self._plans: dict[int, ExecutionPlan] = {}
        self._pinned: ExecutionPlan | None = None
        self._lock = threading.RLock()
        self._depth = 0
        self._process = os.getpid()
        self._closed = False
        self._buffers = Buffers()
        self._streamer = ShardStreamer(store, self._buffers, rate_limit)
        self._decompressor = Decompressor(
            self._buffers, path, store.grid.row_length, store.grid.matrices, store.index.full_dtype or "float32"
        )
        self._model: PreTrainedModel | None = None
        self._scheduler: Scheduler | None = None
        self._embeddings: list[RowGatheredEmbedding] = []
        self._readers: dict[str, TableReader] = {}
        self._most_buffered = 0
        self.last_run: RunTimeline | None = None
        self.plan = self._plan_for(Workload.bucket(config.seq_len))
        self._adopt(self.plan)
        self.prefetch()

    # What a user calls.

    def replan(self, target_latency: float | str | None = None, preload_budget: int | str | None = None) -> None:
        """Plans anew for another T or S, keeping of the preload buffer what the new plan wants too."""
        changes = {"target_latency": target_latency, "preload_budget": preload_budget}
        with self._turn():
            self.config = self.config.replaced(**{name: v for name, v in changes.items() if v is not None})
            self._plans.clear()
            self._pinned = None
            self._use(self._plan_for(self.plan.workload.tokens))
            self.prefetch()

    def use(self, plan: ExecutionPlan) -> None:
        """Runs this plan from now on, whatever the number of tokens, until the next `replan`."""
        with self._turn():
            self._pinned = plan
            self._use(plan)

    def prefetch(self) -> None:
        """Starts reading for the next inference, as far ahead as the staging buffer allows."""
        with self._turn():
            self._streamer.start()

    def memory(self) -> dict[str, int]:
        """Bytes of weights in memory now: resident, preload, staging, working buffer; and the most there ever were."""
        resident = self._resident_bytes()
        return {"resident": resident, **self._buffers.sizes(), "peak": resident + self._most_buffered}

    def close(self) -> None:
        """Stops reading and gives back all buffers; the model cannot run any more."""
        with self._lock:
            self._closed = True
            self._streamer.close()
            if self._scheduler is not None:
                self._scheduler.release()
            self._buffers.release()

    # What the integration calls.

    def attach(self, model: PreTrainedModel) -> None:
        """Makes `model`, whose layers are elastic, run from this session."""
        architecture: Architecture = get_architecture(model.config)
        base: Any = model.base_model
        self._readers = {name: TableReader(self.store, name, self._rate_limit) for name in self.store.index.tables}
        for name, path in _embeddings(self.store, architecture, model).items():
            embedding = base.get_submodule(path)
            embedding.reader = self._readers[name]
            self._embeddings.append(embedding)
        for name, module in model.named_modules():
            if isinstance(module, StreamedDecoder):
                module.reader = self._readers[_table_of(self.store, name, model.config)]
        model.requires_grad_(False)
        self._model = model
        self._scheduler = Scheduler(model, architecture, self._streamer, self._decompressor)
        self._scheduler.apply(self.plan)
        base.forward = self._guarded_base(base.forward)
        if base is not model:
            model.forward = self._guarded(model.forward)

    # Running.

    def _guarded(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._turn(), torch.no_grad():
                begun = time.perf_counter()
                output = forward(*args, **kwargs)
                if self.last_run is not None:
                    self.last_run = dataclasses.replace(self.last_run, total=time.perf_counter() - begun)
                return output

        return run

    def _guarded_base(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._turn(), torch.no_grad(), self._inference(_tokens(args, kwargs)):
                return forward(*args, **kwargs)

        return run

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Holds the session for this thread."""
        if os.getpid() != self._process:
            self._after_fork()
        with self._lock:
            if self._closed:
                raise RuntimeError("This session is closed; load the model again with from_pretrained.")
            yield

    @contextmanager
    def _inference(self, tokens: int) -> Iterator[None]:
        assert self._scheduler is not None and self._model is not None
        if self._model.training:
            raise RuntimeError("A model that runs from shards is for inference only: call model.eval() first.")
        begun = time.perf_counter()
        self._use(self._plan_for(Workload.bucket(tokens)))
        self._streamer.start()
        self._streamer.hold_to(begun)
        row_bytes = self._row_bytes_read()
        self._scheduler.enter()
        try:
            yield
            self._streamer.finish(self._scheduler.times[-1].start)
        except BaseException:
            self._streamer.stop()
            raise
        finally:
            self._scheduler.leave()
        times = self._scheduler.times
        self.last_run = run_timeline(
            times,
            self._streamer.step_times(len(times)),
            begun=begun,
            ended=time.perf_counter(),
            tokens=tokens,
            embedding=sum(embedding.seconds for embedding in self._embeddings),
            bytes_read=self._streamer.bytes_read,
            row_bytes_read=self._row_bytes_read() - row_bytes,
            bits=self._scheduler.bits,
        )

    # Plans.

    def _plan_for(self, tokens: int) -> ExecutionPlan:
        if self._pinned is not None:
            return self._pinned
        if tokens not in self._plans:
            plan = self._planner.plan(self.config, Workload(tokens, self.config.batch_size))
            if not plan.feasible:
                message = missed_target(plan)
                if self.config.strict:
                    raise InfeasibleLatencyError(message)
                warnings.warn(message + " It runs all the same.", stacklevel=2)
            self._plans[tokens] = plan
        return self._plans[tokens]

    def _use(self, plan: ExecutionPlan) -> None:
        if plan is not self.plan:
            self._adopt(plan)
            if self._scheduler is not None:
                self._scheduler.apply(plan)

    def _adopt(self, plan: ExecutionPlan) -> None:
        self._streamer.adopt(plan, self._wanted(plan), plan.staging_budget)
        dtype = self._decompressor.path.torch_dtype
        self._buffers.reserve_working(working_weights(self.store.grid, plan.submodel[1], dtype), dtype)
        self.plan = plan
        self._most_buffered = max(self._most_buffered, sum(self._buffers.sizes().values()))

    def _wanted(self, plan: ExecutionPlan) -> np.ndarray | None:
        """int64 `[N, M]`: the fidelities to read up to where there is time; None where runs are not refined."""
        if not (self.config.refine and can_refine(plan)):
            return None
        if plan is self._pinned:
            return plan.bits
        longer = self.config.replaced(target_latency=LONGER * self.config.target_latency)
        return wanted_bits(plan, self._planner.plan(longer, plan.workload))

    # Housekeeping.

    def _after_fork(self) -> None:
        """A forked child has the parent's memory but not its threads: it reads with its own, from files of its own."""
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._streamer.reopen()

    def _row_bytes_read(self) -> int:
        return sum(reader.bytes_read for reader in self._readers.values())

    def _resident_bytes(self) -> int:
        tables = sum(reader.resident_bytes for reader in self._readers.values())
        if self._model is None:
            return tables
        tensors = {t.data_ptr(): t.nbytes for t in (*self._model.parameters(), *self._model.buffers())}
        return tables + sum(tensors.values())


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Number of tokens in the inputs of a base model's forward."""
    input_ids = kwargs.get("input_ids", args[0] if args else None)
    embeddings = kwargs.get("inputs_embeds")
    if isinstance(input_ids, Tensor):
        return input_ids.numel()
    if isinstance(embeddings, Tensor):
        return embeddings.numel() // embeddings.shape[-1]
    raise ValueError("The model needs input_ids or inputs_embeds.")


def _table_of(store: ShardStore, decoder: str, config: PreTrainedConfig) -> str:
    for name, table in store.index.tables.items():
        if decoder in table.decoders:
            return name
    if config.tie_word_embeddings:
        return WORD_EMBEDDINGS
    raise ValueError(f"The store has no weights for the head {decoder}; shard a checkpoint that has them.")


def _embeddings(store: ShardStore, architecture: Architecture, model: PreTrainedModel) -> dict[str, str]:
    """Paths of the embeddings that the store has as tables, by the name of the table."""
    paths = architecture.embeddings(model.config)
    return {name: path for name, path in paths.items() if name in store.index.tables}


def make_elastic(model: PreTrainedModel, architecture: Architecture, store: ShardStore) -> None:
    """Replaces the modules of a stock model, still without weights, by the lazy ones for what the store has."""
    base: Any = model.base_model
    for layer in base.get_submodule(architecture.layers):
        for matrix in architecture.matrices:
            linear = layer.get_submodule(matrix.module)
            _replace(layer, matrix.module, ElasticLinear(linear, matrix.name, matrix.by_columns))
    for path in _embeddings(store, architecture, model).values():
        _replace(base, path, RowGatheredEmbedding(base.get_submodule(path)))
    names = {name for name, _ in model.named_modules()}
    for path in architecture.lm_decoders:
        if path in names:
            decoder: Any = model.get_submodule(path)
            _replace(model, path, StreamedDecoder(decoder))


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)

"""What a call of a model, of the module that has its layers, and of a layer means: which inference it is part of."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sti_hf.architectures import Architecture
from sti_hf.errors import UnsupportedUseError
from sti_hf.planning import ExecutionPlan, Workload
from sti_hf.runtime.guard import Guard
from sti_hf.runtime.inference import Inference
from sti_hf.runtime.inputs import cached_submodel, check_inputs, check_length, workload_of, workload_of_states
from sti_hf.runtime.plan_book import PlanBook
from sti_hf.runtime.prepared import PreparedPlan
from sti_hf.runtime.reads.streamer import ShardStreamer
from sti_hf.runtime.reads.tables import Tables
from sti_hf.runtime.timeline import RunTimeline
from sti_hf.runtime.watch import Watch


class Forwards:
    """The forwards of one model, one at a time. The modules in the model hold this; it holds none of them.

    `last_run` is the last inference that ended.
    """

    def __init__(self, architecture: Architecture, book: PlanBook, streamer: ShardStreamer, tables: Tables) -> None:
        self.architecture, self.book, self.streamer, self.tables = architecture, book, streamer, tables
        self.guard = Guard(streamer.after_fork)
        self._watch = Watch()
        self.last_run: RunTimeline | None = None
        self._inference: Inference | None = None
        self._most_buffered = 0
        self._note_buffers(streamer.prepared)

    # What the guarded modules call.

    def run_model(self, module: nn.Module, inputs: Mapping[str, Any], forward: Callable[[], Any]) -> Any:
        """A forward of the whole model around its base model."""
        check_inputs(inputs)
        with self._turn_of(module):
            return forward()

    def run_base(self, module: nn.Module, inputs: Mapping[str, Any], forward: Callable[[], Any]) -> Any:
        """A forward of the base model: one inference."""
        check_inputs(inputs)
        with self._turn_of(module):
            workload, submodel = workload_of(inputs), cached_submodel(inputs.get("past_key_values"))
            check_length(module, self.architecture, inputs, workload)
            with self._inference_of(workload, submodel):
                return forward()

    def run_stack(self, module: nn.Module, inputs: Mapping[str, Any], forward: Callable[[], Any]) -> Any:
        """A forward of the module that has the layers: a part of the base model's, or an inference of its own."""
        with self._turn_of(module):
            running = self._current
            if running is not None and not running.entered:
                running.entered = True
                return forward()
            workload = workload_of_states(inputs.get("hidden_states", inputs.get("inputs_embeds")))
            with self._inference_of(workload, cached_submodel(inputs.get("past_key_values"))) as own:
                own.entered = True
                return forward()

    def run_layer(
        self, module: nn.Module, layer: int, args: Any, kwargs: dict[str, Any], forward: Callable[..., Any]
    ) -> Any:
        """A forward of a layer: a step of the inference that runs."""
        inference = self.running()
        _refuse_training(module)
        args, kwargs = inference.begin_layer(module, layer, args, kwargs)
        return inference.end_layer(forward(*args, **kwargs))

    def executed_layers(self) -> tuple[int, ...] | None:
        """The layers that the inference of this thread runs; None where there is none."""
        return None if self._current is None else self._current.layers

    def running(self) -> Inference:
        """The inference of this thread. Raises `UnsupportedUseError` where there is none."""
        inference = self._current
        if inference is None:
            self.guard.check_open()
            raise UnsupportedUseError(
                "A layer was called by itself, and its weights are in memory only while the model runs: call the model, "
                "or the module that has the layers."
            )
        return inference

    def note_embedding(self, seconds: float) -> None:
        """Takes note of the seconds that reading embedding rows took."""
        if self._current is not None:
            self._current.embedding_seconds += seconds

    # What the session calls.

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Holds the model for this thread, outside of any inference."""
        with self._turn() as idle:
            if not idle:
                raise UnsupportedUseError("A plan cannot be changed while the model runs: do it after the forward.")
            yield

    def prefetch(self) -> None:
        """Starts reading for the next inference, unless one is running."""
        with self._turn() as idle:
            if idle:
                self.streamer.start()

    def rebook(self, book: PlanBook) -> None:
        """Plans by another book from now on, and makes ready its first plan; completely, or not at all."""
        self._adopt(book.first, book)
        self.book = book

    def buffer_sizes(self) -> dict[str, int]:
        """Bytes of each buffer."""
        return self.streamer.prepared.sizes()

    @property
    def most_buffered(self) -> int:
        """The most bytes that the buffers ever had."""
        return self._most_buffered

    def close(self) -> None:
        """Stops reading and gives back memory, threads and files; nothing runs any more."""
        self.guard.close(self._give_back)

    # Running.

    @property
    def _current(self) -> Inference | None:
        """The inference that this thread of this process runs. One that a thread of a parent process ran is gone."""
        inference = self._inference
        return inference if inference is not None and inference.is_of_this_thread() else None

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """A turn of this thread; gives whether it runs no inference in it yet."""
        with self.guard.turn() as outermost:
            if outermost:
                self._inference = None  # one may be left whose end was interrupted
            yield self._current is None

    @contextmanager
    def _turn_of(self, module: nn.Module) -> Iterator[None]:
        _refuse_training(module)
        with self._turn(), torch.no_grad():
            begun, before = time.perf_counter(), self.last_run
            yield
            run = self.last_run
            if "sti" in module.__dict__ and run is not None and run is not before:
                self.last_run = dataclasses.replace(run, total=time.perf_counter() - begun)
                self._watch.note(self.last_run)

    @contextmanager
    def _inference_of(self, workload: Workload, submodel: tuple[int, int] | None) -> Iterator[Inference]:
        if self._current is not None:
            raise UnsupportedUseError("The model was called from inside its own forward: call it before or after.")
        begun = time.perf_counter()
        plan = self.book.plan_for(workload.tokens, submodel)
        self._adopt(plan, self.book)
        inference = Inference(self.architecture, self.streamer, workload, begun, self.tables.bytes_read)
        try:
            self._inference = inference
            yield inference
        finally:
            self._inference = None
            inference.end()
        if inference.finished:
            self.last_run = inference.timeline(self.tables.bytes_read, self._predicted(plan, workload))

    def _adopt(self, plan: ExecutionPlan, book: PlanBook) -> None:
        """Makes a plan of a book the one that runs: it is built completely, and then takes the place of the last."""
        streamer = self.streamer
        before = streamer.prepared
        if plan is before.plan:
            return
        streamer.stop()
        prepared = PreparedPlan(
            before.store,
            plan,
            before.path,
            wanted=book.wanted(plan),
            staging_budget=book.config.staging_budget,
            before=before,
        )
        self._note_buffers(prepared)
        streamer.adopt(prepared)

    def _predicted(self, plan: ExecutionPlan, workload: Workload) -> float:
        """Seconds that were expected of the last run."""
        return plan.first_latency if self.streamer.fills_preload else self.book.planner.latency(plan, workload)

    def _note_buffers(self, prepared: PreparedPlan) -> None:
        self._most_buffered = max(self._most_buffered, sum(prepared.sizes().values()))

    def _give_back(self) -> None:
        self.streamer.close()
        self.streamer.prepared.give_back()
        self.tables.close()


def _refuse_training(module: nn.Module) -> None:
    if module.training:
        raise UnsupportedUseError(
            "A model that runs from its store is for inference only: call model.eval() first; to train, load the "
            "checkpoint without sti_config."
        )

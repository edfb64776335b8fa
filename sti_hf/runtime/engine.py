"""What runs a model's inferences: one at a time, each from a plan that was made ready completely."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sti_hf.errors import UnsupportedUseError
from sti_hf.model import Architecture, Grid
from sti_hf.planning import ExecutionPlan, Workload
from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.generation import Continued, Generations
from sti_hf.runtime.guard import Guard
from sti_hf.runtime.inference import Inference
from sti_hf.runtime.plan_book import PlanBook, is_step
from sti_hf.runtime.prepared import PreparedPlan
from sti_hf.runtime.reads.streamer import ShardStreamer
from sti_hf.runtime.reads.tables import Tables
from sti_hf.runtime.timeline import RunTimeline, with_following
from sti_hf.runtime.watch import Watch
from sti_hf.shards.store import ShardStore


class Engine:
    """Plans, reading and inferences of the layers of a model, or of its vocabulary. Reading begins at once.

    `last_run` is the last inference that ended, and `is_step` whether the last was of a text's further tokens, which
    `generations` tells of.

    Args:
        architecture: of the model.
        book: its plans, of which the first is made ready.
        store, path, rate_limit: what runs, how it is computed, and the bytes a second at which it is read (0: all).
        following: what runs after it in a forward: that begins to read when all shards of this one have been.
    """

    def __init__(
        self,
        architecture: Architecture,
        book: PlanBook,
        store: ShardStore,
        path: ComputePath,
        rate_limit: float = 0.0,
        following: Engine | None = None,
    ) -> None:
        prepared = _made_ready(store, book.first, path, book)
        self.streamer = ShardStreamer(store, prepared, rate_limit)
        self.architecture, self.book, self.following = architecture, book, following
        self.tables = Tables(store, rate_limit)
        self.guard = Guard(functools.partial(_make_ready_after_fork, self.streamer))
        self.last_run: RunTimeline | None = None
        self.is_step = False
        self.generations = Generations()
        self._watch = Watch()
        self._inference: Inference | None = None
        self._most_buffered = 0
        self._note_buffers(prepared)

    @property
    def grid(self) -> Grid:
        """The cut of the stack that runs."""
        return self.streamer.prepared.store.grid

    @property
    def current(self) -> Inference | None:
        """The inference that this thread of this process runs. One that a thread of a parent process ran is gone."""
        inference = self._inference
        return inference if inference is not None and inference.is_of_this_thread() else None

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """A turn of this thread; gives whether it runs no inference in it yet."""
        with self.guard.turn() as outermost:
            if outermost:
                self._inference = None  # one may be left whose end was interrupted
            yield self.current is None

    @contextmanager
    def inference(self, workload: Workload, continued: Continued | None = None) -> Iterator[Inference]:
        """One inference, by the plan for this work, which may go on from a key/value cache. In a turn."""
        if self.current is not None:
            raise UnsupportedUseError("The model was called from inside its own forward: call it before or after.")
        begun = time.perf_counter()
        plan = self.book.plan_for(workload.tokens, continued)
        self.is_step = is_step(workload.tokens, continued)
        self._adopt(plan, self.book)
        inference = Inference(
            self.architecture, self.streamer, workload, begun, self.tables.bytes_read, self._begin_following
        )
        try:
            self._inference = inference
            yield inference
        finally:
            self._inference = None
            inference.end()
        if inference.finished:
            filling = self.streamer.fills_preload
            predicted = plan.first_latency if filling else self.book.predicted(plan, workload)
            self.last_run = inference.timeline(self.tables.bytes_read, predicted)

    def note_total(self, seconds: float, followed: RunTimeline | None = None) -> None:
        """Takes note of what the model's whole forward took around the last inference, and the one that followed."""
        if self.last_run is not None:
            run = self.last_run if followed is None else with_following(self.last_run, followed)
            self.last_run = dataclasses.replace(run, total=seconds)
            self.generations.note_run(self.last_run)
            if not self.book.is_pinned:
                self._watch.note(self.last_run)

    @contextmanager
    def quiet_turn(self) -> Iterator[None]:
        """A turn of this thread, outside of any inference."""
        with self.turn() as idle:
            if not idle:
                raise UnsupportedUseError("A plan cannot be changed while the model runs: do it after the forward.")
            yield

    def prefetch(self) -> None:
        """Starts reading for the next inference, unless one is running."""
        with self.turn() as idle:
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

    def _adopt(self, plan: ExecutionPlan, book: PlanBook) -> None:
        """Makes a plan of a book the one that runs: it is built completely, and then takes the place of the last."""
        before = self.streamer.prepared
        if plan is not before.plan:
            self.streamer.stop()
            prepared = _made_ready(before.store, plan, before.path, book, before)
            self._note_buffers(prepared)
            self.streamer.adopt(prepared)

    def _begin_following(self) -> None:
        following = self.following
        if following is None or self.streamer.prepared.plan.is_full:
            return
        with following.turn() as idle:
            if idle:
                book = following.book
                following._adopt(book.plan_for(1, book.first_continued if self.is_step else None), book)
                following.streamer.start()

    def _note_buffers(self, prepared: PreparedPlan) -> None:
        self._most_buffered = max(self._most_buffered, sum(prepared.sizes().values()))

    def _give_back(self) -> None:
        self.streamer.close()
        self.streamer.prepared.give_back()
        self.tables.close()


def _made_ready(
    store: ShardStore, plan: ExecutionPlan, path: ComputePath, book: PlanBook, before: PreparedPlan | None = None
) -> PreparedPlan:
    wanted = book.wanted(plan)
    return PreparedPlan(store, plan, path, wanted=wanted, staging_budget=plan.staging_budget, before=before)


def _make_ready_after_fork(streamer: ShardStreamer) -> None:
    # PyTorch's threads are the parent's too, and waiting for them would never end: DataLoader does the same.
    torch.set_num_threads(1)
    streamer.after_fork()

"""Reads a plan's shards ahead of compute, in plan order."""

from __future__ import annotations

import time

import numpy as np

from sti_hf import native
from sti_hf.errors import StoreReplacedError, UnsupportedUseError
from sti_hf.native import Outcome
from sti_hf.planning.refinement import Margin, compute_deadlines
from sti_hf.runtime.buffers import LOCATION_SHIFT, PRELOAD
from sti_hf.runtime.prepared import PreparedPlan
from sti_hf.runtime.reads.refinement import Refinement
from sti_hf.shards.store import ShardStore

READING_THREADS = 2
"""So that the disk has a request while the thread whose request is done waits for a busy processor."""

REFINING_SECONDS = 0.005
"""How often a forward that waits for a layer looks at how fast reading is, where the run is refined."""


class ReadRun:
    """The reads for one inference: what they are, and of which steps."""

    def __init__(self, prepared: PreparedPlan) -> None:
        self.prepared = prepared
        placement, missing = prepared.placement, prepared.missing()
        self.fills_preload = any(pieces.any() for pieces in missing)
        self.requests, self.pieces = placement.requests(missing) if self.fills_preload else placement.streamed_requests
        self.steps = self.requests["step"]
        self.begun: float | None = None
        self.refinement = Refinement(placement, prepared.plan, self.requests) if placement.refined else None

    def note_held(self, outcomes: np.ndarray) -> None:
        """Takes note of the steps whose pieces for the preload buffer all were read and checked."""
        preloading = self.requests["target"] >> LOCATION_SHIFT == PRELOAD
        unchecked = set(self.steps[preloading & (outcomes != Outcome.CHECKED)].tolist())
        for step in set(self.steps[preloading].tolist()) - unchecked:
            self.hold(step)

    def hold(self, step: int) -> None:
        """Takes note that a step's pieces in the preload buffer are there."""
        self.prepared.held[step] = self.prepared.placement.layers[step].preloaded


class ShardStreamer:
    """Brings the shards of the plan that is `prepared` into its buffers.

    What was read into the preload buffer and checked stays there: later runs, and later plans that want the same
    pieces, do not read it again. A plan with fidelities beyond its own is refined: reads that come too late are given
    up, and planes beyond the plan are read where there is time. The files are opened once.
    """

    def __init__(self, store: ShardStore, prepared: PreparedPlan, rate_limit: float = 0.0) -> None:
        self.prepared = prepared
        self._store = store
        paths = [str(store.path / name) for name in prepared.placement.files]
        try:
            self._native = native.Streamer(paths, threads=READING_THREADS, rate_limit=rate_limit)
        except FileNotFoundError as error:
            raise StoreReplacedError(f"The store {store.path} was replaced or removed: load again.") from error
        self._run: ReadRun | None = None
        self._last_run: ReadRun | None = None
        self._margin = Margin(prepared.plan.target_latency)

    def adopt(self, prepared: PreparedPlan) -> None:
        """Runs this from now on."""
        if self._margin.target_latency != prepared.plan.target_latency:
            self._margin = Margin(prepared.plan.target_latency)
        self.prepared = prepared

    def start(self) -> None:
        """Starts reading for the next inference, unless that is under way."""
        run = self._run
        if run is None or run.prepared is not self.prepared or run.begun is not None:
            self.stop()
            self._native.cancel()  # where a start was interrupted, nobody has taken note of it
            run = ReadRun(self.prepared)
            self._native.start(run.prepared.compressed, run.requests, run.pieces)
            self._run = self._last_run = run

    def hold_to(self, begun: float) -> None:
        """From now on, gives up what comes too late for a forward that began at `begun` (`time.perf_counter`)."""
        if self._run is not None:
            self._run.begun = begun
            self._refine(self._run)

    def _refine(self, run: ReadRun) -> None:
        if run.refinement is not None and run.begun is not None:
            now, margin = time.perf_counter(), self._margin.seconds
            self._native.set_latest(run.refinement.latest(run.begun, self._native.timings(), now, margin))

    def wait(self, step: int) -> float:
        """Blocks until the pieces of a step are in memory; returns the seconds it took.

        Raises `native.StreamError`, with file and offset, where reading them went wrong, and `StoreReplacedError`
        where that is because the store is another one now.
        """
        run = self._run
        if run is None:
            raise UnsupportedUseError("Reading for this forward was stopped while it ran: call the model again.")
        start = time.perf_counter()
        try:
            if run.refinement is None:
                self._native.wait(step)
            else:
                self._refine(run)
                while not self._native.wait_for(step, REFINING_SECONDS):
                    self._refine(run)
        except native.StreamError as error:
            self._store.check_not_replaced(error)
            raise
        run.hold(step)
        return time.perf_counter() - start

    def fidelities(self, step: int) -> np.ndarray | None:
        """int64 `[M]`: what a step's shards can run at after `wait`; None: at what the plan says."""
        run = self._run
        if run is None or run.refinement is None:
            return None
        return run.refinement.fidelities(step, self._native.timings())

    def release(self, step: int) -> None:
        """Gives back the staging memory of a step."""
        self._native.release(step)

    def finish(self, last_start: float) -> None:
        """Ends a run whose every step was waited for; the last began to compute at `last_start`."""
        run, self._run = self._run, None
        if run is not None and run.refinement is not None and run.begun is not None and not run.fills_preload:
            deadline = float(compute_deadlines(run.prepared.plan)[-1])
            self._margin.learn(last_start - run.begun - deadline)

    def stop(self) -> None:
        """Stops reading; what of the preload buffer was read and checked by then is kept."""
        run, self._run = self._run, None
        if run is not None:
            self._native.cancel()
            run.note_held(self._native.outcomes())

    @property
    def fills_preload(self) -> bool:
        """Whether the last run fills the preload buffer as well."""
        return self._last_run is not None and self._last_run.fills_preload

    @property
    def bytes_read(self) -> int:
        """Bytes read since the last `start`."""
        return self._native.bytes_read

    def step_times(self, steps: int) -> np.ndarray:
        """float64 `[steps, 2]`: when reading of each step began and ended (`time.perf_counter`); nan: nothing read."""
        times = np.full((steps, 2), np.nan)
        run = self._last_run
        if run is not None and len(run.steps):
            timings = self._native.timings()
            read = ~np.isnan(timings["end"])
            for step in np.unique(run.steps[read]):
                of_step = timings[read & (run.steps == step)]
                times[step] = of_step["start"].min(), of_step["end"].max()
        return times

    def after_fork(self) -> None:
        """In a forked child, whose parent keeps its own threads: reads with others, from the same open files."""
        self._native = self._native.for_child()
        self._run = self._last_run = None

    def close(self) -> None:
        """Stops reading and closes the files."""
        self._run = self._last_run = None
        self._native.close()

"""Measures a device for a store: what reading and computing cost (STI, section 4).

Everything is measured where it is used: reads with the streamer from the store itself, compute with the store's own
layers in the elastic runtime, whose times the session keeps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import PreTrainedModel

from sti_hf import native
from sti_hf.architectures.base import WORD_EMBEDDINGS
from sti_hf.config import STIConfig
from sti_hf.planning import DeviceProfile, ExecutionPlan, OnePlan
from sti_hf.planning.baselines import preloaded_model
from sti_hf.runtime.buffers import allocate
from sti_hf.runtime.gemm import ComputePath, available_paths
from sti_hf.runtime.reads.placement import REQUEST_BYTES
from sti_hf.runtime.reads.streamer import READING_THREADS
from sti_hf.runtime.reads.tables import TableReader
from sti_hf.runtime.session import STISession
from sti_hf.runtime.timeline import RunTimeline
from sti_hf.shards.layout import BLOCK, FULL
from sti_hf.shards.store import TABLES_FILE, ShardStore

LoadModel = Callable[[STISession], PreTrainedModel]
"""Builds the store's model on a session."""

TOKENS = (16, 64, 128, 256, 512)
PATH_TOKENS = 128
LAYERS = 4
BITS = 4
WARM_UP = 2
FORWARDS = 7
"""Of each kind, for a median: three differ by half from one profile to the next."""

REPEATS = 3
SUSTAINED_BYTES = 192 << 20
SUSTAINED_SECONDS = 1.0
READING_REQUESTS = 1 << 14
CHECKED_REQUESTS = 16
"""Large reads whose checksums are taken first; they are read and checked over and over."""

NO_PIECES = np.empty(0, dtype=native.PIECE)
SMALL_REQUESTS = 64
STEPS = 3
"""How often `measure_device` tells of its progress."""


def measure_device(
    store: ShardStore,
    load_model: LoadModel,
    *,
    compute_dtype: str = "auto",
    rate_limit: float = 0.0,
    progress: Callable[[str], object] = lambda step: None,
) -> DeviceProfile:
    """Measures this device for `store`; takes seconds. `progress` is told what is being measured.

    Of the compute paths of `compute_dtype` the fastest at 128 tokens is taken.
    """
    progress("reading")
    request_seconds, bytes_per_second = _measure_reads(store, rate_limit)
    row_seconds = _measure_rows(store, rate_limit)
    progress("compute paths")
    paths = {path: _layer_seconds(store, load_model, path) for path in available_paths(compute_dtype)}
    path = min(paths, key=lambda candidate: paths[candidate])
    progress(f"layers ({path.dtype}, {path.gemm})")
    with _runner(store, load_model, path) as run:
        tokens = run.token_counts()
        delay_per_byte = _measure_delay(run, rate_limit)
        widths = sorted({max(1, store.grid.slices // 4), max(1, store.grid.slices // 2), store.grid.slices})
        measured = [[run(count, width, BITS) for width in widths] for count in tokens]
        decompress = {bits: run(tokens[0], store.grid.slices, bits).decompress for bits in store.fidelities}
    return DeviceProfile(
        request_seconds=request_seconds,
        bytes_per_second=bytes_per_second,
        row_seconds=row_seconds,
        delay_per_byte=delay_per_byte,
        tokens=tuple(tokens),
        widths=tuple(widths),
        layer_seconds=tuple(tuple(one.layer for one in row) for row in measured),
        decompress_seconds=decompress,
        fixed_seconds=tuple(row[-1].fixed for row in measured),
        compute_dtype=path.dtype,
        gemm=path.gemm,
    )


class _Measurement:
    """Medians of a few forwards: seconds of one layer without decompression, of decompressing one weight, and of the
    forward outside the layers."""

    def __init__(self, layer: float, decompress: float, fixed: float) -> None:
        self.layer, self.decompress, self.fixed = layer, decompress, fixed


class _Runner:
    """Runs forwards of the store's model with a few layers, all preloaded."""

    def __init__(self, store: ShardStore, session: STISession, model: PreTrainedModel) -> None:
        self.store, self.session, self.model = store, session, model

    def token_counts(self) -> list[int]:
        """The token counts to measure at, up to the model's longest input: attention's cost cannot be extrapolated."""
        # Families with a padding position (RoBERTa, MPNet) take two tokens fewer than they have positions.
        positions = getattr(self.model.config, "max_position_embeddings", TOKENS[-1] + 2)
        longest = max(1, min(TOKENS[-1], positions - 2))
        return [*(count for count in TOKENS if count < longest), longest]

    def nearest_count(self, tokens: int) -> int:
        """Of the `token_counts` the one nearest to this."""
        return min(self.token_counts(), key=lambda count: abs(count - tokens))

    def __call__(self, tokens: int, width: int, bits: int) -> _Measurement:
        layers = 1 if bits == FULL else min(LAYERS, self.store.grid.layers)
        self.session.use(preloaded_plan(self.store, layers, width, bits))
        inputs = {
            "input_ids": torch.randint(10, self.model.config.vocab_size, (1, tokens)),
            "attention_mask": torch.ones(1, tokens, dtype=torch.long),
        }
        runs = [self._run(inputs) for _ in range(WARM_UP + FORWARDS)][WARM_UP:]
        weights = width * self.store.grid.slice_weights
        return _Measurement(
            layer=median(float(np.median(run.compute)) for run in runs),
            decompress=median(float(np.median(run.decompress)) for run in runs) / weights,
            fixed=max(0.0, median(map(_outside, runs))),
        )

    def _run(self, inputs: dict[str, torch.Tensor]) -> RunTimeline:
        # Without the head: one over the vocabulary is streamed, which is planned for by its bytes.
        self.model.base_model(**inputs)
        assert self.session.last_run is not None
        return self.session.last_run


def _outside(run: RunTimeline) -> float:
    """Seconds of a forward that its layers do not take, nor reading; with what the first layer takes longer than the
    others, since memory is new to it."""
    layers = len(run.compute) * float(np.median(run.compute)) + float(run.decompress.sum())
    return run.total - run.embedding - float(run.wait.sum()) - layers


def preloaded_plan(store: ShardStore, layers: int, width: int, bits: int) -> ExecutionPlan:
    """The first layers and slices of a store at one fidelity, all of it preloaded, run as strategy "sti" is."""
    return replace(preloaded_model(store.layouts, layers=layers, slices=width, bits=bits), strategy="sti")


@contextmanager
def _runner(store: ShardStore, load_model: LoadModel, path: ComputePath) -> Iterator[_Runner]:
    start = preloaded_plan(store, 1, store.grid.slices, BITS)
    session = STISession(store, STIConfig(), OnePlan(start), path)
    try:
        yield _Runner(store, session, load_model(session))
    finally:
        session.close()


def _layer_seconds(store: ShardStore, load_model: LoadModel, path: ComputePath) -> float:
    """Seconds of a layer, decompression included, on one compute path."""
    with _runner(store, load_model, path) as run:
        measured = run(run.nearest_count(PATH_TOKENS), store.grid.slices, BITS)
        return measured.layer + measured.decompress * store.grid.slices * store.grid.slice_weights


def _measure_delay(run: _Runner, rate_limit: float) -> float:
    """Seconds by which each byte that is read delays compute."""
    tokens, width = run.nearest_count(PATH_TOKENS), run.store.grid.slices
    delays = []
    for _ in range(REPEATS):
        quiet = run(tokens, width, BITS).layer
        with _reading(run.store, rate_limit) as streamer:
            begun, before = time.perf_counter(), streamer.bytes_read
            busy = run(tokens, width, BITS).layer
            bytes_per_second = (streamer.bytes_read - before) / (time.perf_counter() - begun)
        delays.append((busy - quiet) / (busy * bytes_per_second) if bytes_per_second else 0.0)
    return max(0.0, median(delays))


def _measure_reads(store: ShardStore, rate_limit: float) -> tuple[float, float]:
    """Seconds for a request, and bytes a second, from one long read of the shards file and many small ones."""
    path = store.layer_path(0)
    blocks = store.index.files[path.name] // BLOCK
    large = min(REQUEST_BYTES // BLOCK, blocks)
    count = blocks // large
    rounds = max(1, -(-SUSTAINED_BYTES // (count * large * BLOCK)))
    ends = _read_ends(path, np.tile(np.arange(count) * large, rounds), large, rate_limit, SUSTAINED_SECONDS)
    # Throttled disks deliver in bursts, one of them first: a line through the later reads tells the rate they sustain.
    later = np.arange(len(ends) // 4, len(ends))
    large_seconds = float(np.polyfit(later, ends[later], 1)[0]) if len(later) > 1 else float(ends[-1])
    scattered = np.linspace(0, blocks - 1, min(SMALL_REQUESTS, blocks)).astype(np.int64)
    small_seconds = median(_read_ends(path, scattered, 1, rate_limit)[-1] / len(scattered) for _ in range(REPEATS))
    # The streamer cuts long reads into such large ones, so their cost for each is part of the rate.
    rate = large * BLOCK / large_seconds
    return max(0.0, small_seconds - BLOCK / rate), rate


def _read_ends(
    path: Path, first_blocks: np.ndarray, blocks: int, rate_limit: float, seconds: float = math.inf
) -> np.ndarray:
    """Seconds after which each request of `blocks` blocks was done, float64 `[n]`; stops after about `seconds`."""
    requests = _requests(first_blocks, blocks)
    streamer = native.Streamer([str(path)], threads=READING_THREADS, rate_limit=rate_limit)
    try:
        begun = time.perf_counter()
        streamer.start([allocate(blocks * BLOCK)], requests, NO_PIECES)
        for request in range(len(requests)):
            streamer.wait(request)
            if time.perf_counter() - begun > seconds:
                break
        streamer.cancel()
        ends = streamer.timings()["end"] - begun
        return ends[np.isfinite(ends)]
    finally:
        streamer.close()


def _requests(first_blocks: np.ndarray, blocks: int) -> np.ndarray:
    """Reads of `blocks` blocks each, all to the start of the first buffer, each a step."""
    requests = np.zeros(len(first_blocks), dtype=native.REQUEST)
    requests["offset"] = first_blocks * BLOCK
    requests["length"] = blocks * BLOCK
    requests["step"] = np.arange(len(requests))
    return requests


@contextmanager
def _reading(store: ShardStore, rate_limit: float) -> Iterator[native.Streamer]:
    """The start of the shards being read and checked all the while, over and over."""
    path = store.layer_path(0)
    blocks = store.index.files[path.name] // BLOCK
    large = min(REQUEST_BYTES // BLOCK, blocks)
    first_blocks = np.arange(min(CHECKED_REQUESTS, blocks // large)) * large
    content = (np.fromfile(path, np.uint8, large * BLOCK, offset=first * BLOCK) for first in first_blocks.tolist())
    checksums = [native.crc32c(part) for part in content]
    rounds = -(-READING_REQUESTS // len(first_blocks))
    requests = _requests(np.tile(first_blocks, rounds), large)
    requests["target"] = requests["offset"]  # places of their own: they may be read again before they were checked
    requests["pieces"] = 1
    pieces = np.empty(len(requests), dtype=native.PIECE)
    for name in ("target", "length", "offset"):
        pieces[name] = requests[name]
    pieces["crc32c"] = np.tile(checksums, rounds)
    buffer = allocate(len(first_blocks) * large * BLOCK)
    streamer = native.Streamer([str(path)], threads=READING_THREADS, rate_limit=rate_limit)
    try:
        streamer.start([buffer], requests, pieces)
        yield streamer
    finally:
        streamer.close()


def _measure_rows(store: ShardStore, rate_limit: float) -> float:
    """Seconds for one embedding row when as many as a typical input's are read together, from the disk."""
    reader = TableReader(store, WORD_EMBEDDINGS, rate_limit)
    last = reader.table.rows - 1
    native.evict(str(store.path / TABLES_FILE))
    seconds = []
    for skipped in range(REPEATS):  # other rows each time: the disk may keep what it has read
        rows = np.unique(np.linspace(min(skipped, last), last, PATH_TOKENS).astype(np.int64))
        begun = time.perf_counter()
        reader.read(rows)
        seconds.append((time.perf_counter() - begun) / len(rows))
    return median(seconds)

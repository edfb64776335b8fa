"""Measures what reading costs on a device, with the streamer and the row reader, from the store itself."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from sti_hf import native
from sti_hf.model.architecture import WORD_EMBEDDINGS
from sti_hf.runtime.buffers import allocate
from sti_hf.runtime.reads.placement import REQUEST_BYTES
from sti_hf.runtime.reads.streamer import READING_THREADS
from sti_hf.runtime.reads.tables import TableReader
from sti_hf.shards.layout import BLOCK
from sti_hf.shards.store import TABLES_FILE, ShardStore

REPEATS = 3
SUSTAINED_BYTES = 192 << 20
SUSTAINED_SECONDS = 1.0
READING_REQUESTS = 1 << 14
CHECKED_REQUESTS = 16
"""Large reads whose checksums are taken first; they are read and checked over and over."""

NO_PIECES = np.empty(0, dtype=native.PIECE)
SMALL_REQUESTS = 64
ROWS = 128
"""Tokens of a typical input."""


def measure_reads(store: ShardStore, rate_limit: float) -> tuple[float, float]:
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
def reading(store: ShardStore, rate_limit: float) -> Iterator[native.Streamer]:
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


def measure_rows(store: ShardStore, rate_limit: float) -> float:
    """Seconds for one embedding row when as many as a typical input's are read together, from the disk; 0 where there
    are none."""
    if WORD_EMBEDDINGS not in store.stack.tables:
        return 0.0
    reader = TableReader(store, WORD_EMBEDDINGS, rate_limit)
    last = reader.table.rows - 1
    native.evict(str(store.path / TABLES_FILE))
    seconds = []
    for skipped in range(REPEATS):  # other rows each time: the disk may keep what it has read
        rows = np.unique(np.linspace(min(skipped, last), last, ROWS).astype(np.int64))
        begun = time.perf_counter()
        reader.read(rows)
        seconds.append((time.perf_counter() - begun) / len(rows))
    return median(seconds)

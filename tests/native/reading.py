"""Random files, and requests to read them, for the tests of the streamer."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import crc32c
import numpy as np

from sti_hf import native

BLOCK = 4096
CHUNK = 4 * BLOCK
STEPS = 11
SIZE = 43 * BLOCK + 1000
"""Of a file of a chunk a step: the last block is short."""


def aligned(size: int) -> np.ndarray:
    """uint8 `[size]`, its first byte at a multiple of `BLOCK`, as direct IO needs it."""
    memory = np.zeros(size + BLOCK, dtype=np.uint8)
    start = -memory.ctypes.data % BLOCK
    return memory[start : start + size]


def random_file(path: Path, size: int, seed: int = 0) -> bytes:
    content = np.random.default_rng(seed).bytes(size)
    path.write_bytes(content)
    return content


@dataclass
class Reading:
    """Requests and pieces for `Streamer.start`, built one by one."""

    contents: list[bytes]
    requests: list[tuple[int, ...]] = field(default_factory=list)
    pieces: list[tuple[int, ...]] = field(default_factory=list)

    def add(
        self, offset: int, length: int, target: int, *, step: int = 0, wait_for: int = 0, cuts: int = 1, file: int = 0
    ) -> None:
        """One request whose bytes in the file are `cuts` pieces, one after the other."""
        end = min(offset + length, len(self.contents[file]))
        edges = np.linspace(offset, end, cuts + 1, dtype=int).tolist()
        self.requests.append((file, offset, length, target, step, wait_for, cuts))
        for first, last in pairwise(edges):
            checksum = crc32c.crc32c(self.contents[file][first:last])
            self.pieces.append((target + first - offset, last - first, checksum, first))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """As `Streamer.start` takes them."""
        return np.array(self.requests, dtype=native.REQUEST), np.array(self.pieces, dtype=native.PIECE)

    def start(self, streamer: native.Streamer, *buffers: Any) -> None:
        streamer.start(buffers, *self.arrays())


def in_steps(content: bytes, staging: int | None = None) -> Reading:
    """The whole file, one chunk a step. With `staging`, chunks share that many slots."""
    reading = Reading([content])
    for step in range(STEPS):
        slot = step if staging is None else step % staging
        wait_for = 0 if staging is None else max(0, step - staging + 1)
        reading.add(step * CHUNK, CHUNK, slot * CHUNK, step=step, wait_for=wait_for, cuts=3)
    return reading


def outcomes_of(streamer: native.Streamer) -> list[native.Outcome]:
    return [native.Outcome(outcome) for outcome in streamer.outcomes()]

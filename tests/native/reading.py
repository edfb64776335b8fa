"""Random files, and requests to read them, for the tests of the streamer."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import crc32c
import numpy as np

BLOCK = 4096


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
    requests: list[list[int]] = field(default_factory=list)
    pieces: list[list[int]] = field(default_factory=list)

    def add(
        self,
        offset: int,
        length: int,
        target: int,
        *,
        group: int = 0,
        wait_for: int = 0,
        cuts: int = 1,
        file: int = 0,
    ) -> None:
        """One request whose bytes in the file are `cuts` pieces, one after the other."""
        end = min(offset + length, len(self.contents[file]))
        edges = np.linspace(offset, end, cuts + 1, dtype=int).tolist()
        self.requests.append([file, offset, length, target, group, wait_for, cuts])
        for first, last in pairwise(edges):
            checksum = crc32c.crc32c(self.contents[file][first:last])
            self.pieces.append([target + first - offset, last - first, checksum, first])

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        requests = np.array(self.requests, dtype=np.int64).reshape(-1, 7)
        return requests, np.array(self.pieces, dtype=np.int64).reshape(-1, 4)

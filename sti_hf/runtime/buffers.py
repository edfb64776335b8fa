"""The only place that allocates memory for weights: preload, staging and working buffer."""

from __future__ import annotations

import mmap

import numpy as np
import torch
from torch import Tensor

PRELOAD, STAGING = 0, 1
"""Index of each compressed buffer in `Buffers.compressed`, and in the locations that point into them."""

LOCATION_SHIFT = 56


def location(buffer: int, offset: np.ndarray) -> np.ndarray:
    """int64 locations (see `sti_hf.native`) of offsets in a buffer."""
    return offset | (buffer << LOCATION_SHIFT)


def allocate(size: int) -> np.ndarray:
    """uint8 `[size]`, aligned to a memory page as direct IO asks, and resident only where it has been written."""
    # Private, so that a forked child does not write into its parent's buffers.
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype=np.uint8)[:size]


class Buffers:
    """Compressed shards in the preload and the staging buffer, decompressed weights in the working buffer."""

    def __init__(self) -> None:
        self.compressed = [allocate(0), allocate(0)]
        self._working = torch.empty(0)

    @property
    def preload(self) -> np.ndarray:
        """uint8: kept between inferences."""
        return self.compressed[PRELOAD]

    @preload.setter
    def preload(self, buffer: np.ndarray) -> None:
        self.compressed[PRELOAD] = buffer

    def reserve_staging(self, size: int) -> None:
        """Makes the staging buffer `size` bytes large."""
        if len(self.compressed[STAGING]) != size:
            self.compressed[STAGING] = allocate(size)

    def reserve_working(self, weights: int, dtype: torch.dtype) -> None:
        """Makes the working buffer hold `weights` weights."""
        if self._working.dtype != dtype or self._working.numel() < weights:
            self._working = torch.empty(weights, dtype=dtype)

    def working(self, rows: int, columns: int) -> Tensor:
        """The working buffer as a matrix."""
        return self._working[: rows * columns].view(rows, columns)

    def sizes(self) -> dict[str, int]:
        """Bytes of each buffer."""
        return {
            "preload": self.preload.nbytes,
            "staging": self.compressed[STAGING].nbytes,
            "working": self._working.nbytes,
        }

    def release(self) -> None:
        """Gives back all memory."""
        self.compressed[:] = [allocate(0), allocate(0)]
        self._working = torch.empty(0)

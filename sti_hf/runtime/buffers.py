"""Memory for compressed shards: the preload and the staging buffer of a plan."""

from __future__ import annotations

import mmap

import numpy as np

PRELOAD, STAGING = 0, 1
"""Index of each compressed buffer among those of a plan, and in the locations that point into them."""

LOCATION_SHIFT = 56


def location(buffer: int, offset: np.ndarray) -> np.ndarray:
    """int64 locations (see `sti_hf.native`) of offsets in a buffer."""
    return offset | (buffer << LOCATION_SHIFT)


def allocate(size: int) -> np.ndarray:
    """uint8 `[size]`, aligned to a memory page as direct IO asks, and resident only where it has been written."""
    # Private, so that a forked child does not write into its parent's buffers.
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype=np.uint8)[:size]

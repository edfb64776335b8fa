"""What a process can do to keep its resident set small, where the system offers it; nothing elsewhere."""

from __future__ import annotations

import ctypes
import mmap

from torch import Tensor

_libc = ctypes.CDLL(None)
_malloc_trim = getattr(_libc, "malloc_trim", None)  # glibc has it
_madvise = getattr(_libc, "madvise", None)

MADV_PAGEOUT = 21
"""Of Linux 5.4 and later: these pages are not needed soon. Contents stay, unlike with MADV_DONTNEED."""


def return_freed_memory() -> None:
    """Gives what was freed, and the C library keeps for the next allocations, back to the system (about 1 ms)."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def page_out(tensor: Tensor) -> None:
    """Takes a tensor out of the resident set: where it is mapped from a file, it is read again when next used."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if _madvise is not None and end > first:
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), MADV_PAGEOUT)

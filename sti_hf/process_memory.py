"""What a process can do to keep its resident set small, where the system offers it; nothing elsewhere."""

from __future__ import annotations

import ctypes
import mmap

from torch import Tensor

_libc = ctypes.CDLL(None)
_malloc_trim = getattr(_libc, "malloc_trim", None)  # glibc has it
_mallopt = getattr(_libc, "mallopt", None)
_madvise = getattr(_libc, "madvise", None)

M_MMAP_THRESHOLD = -3
LARGE = 1 << 20

MADV_PAGEOUT = 21
"""Of Linux 5.4 and later: these pages are not needed soon. Contents stay, unlike with MADV_DONTNEED."""


def return_freed_memory() -> None:
    """Gives what was freed, and the C library keeps for the next allocations, back to the system (about 1 ms)."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def return_large_blocks() -> None:
    """From now on, what is freed goes back to the system at once if it is `LARGE`.

    Else glibc keeps blocks of up to 32 MB once it has seen some freed, and activations of changing shapes tear them to
    pieces that fit nothing. Takes a tenth more time where many are allocated.
    """
    if _mallopt is not None:
        _mallopt(M_MMAP_THRESHOLD, LARGE)


def page_out(tensor: Tensor) -> None:
    """Takes a tensor out of the resident set: where it is mapped from a file, it is read again when next used."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if _madvise is not None and end > first:
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), MADV_PAGEOUT)

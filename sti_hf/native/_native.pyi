# Written by `python -m nanobind.stubgen -m sti_hf.native._native`; the imports by hand.
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

class Decompression:
    """
    Writes one matrix of a layer's active slices, from bit-planes or full weights, whenever it is run.

    Nothing needs an alignment. Numbers are little-endian.

    Args:
        buffers: 1-D uint8 arrays or tensors, in which the locations of the table are.
        table: `SLICE` `[m]`, in the order of the slices in `out`.
        matrix: Index of this matrix among the matrices of a slice.
        row_length: Weights in a row, a multiple of 8.
        out: float32 or bfloat16 `[m * rows, row_length]`, contiguous.
        matrices: How many matrices a slice has.
        full_dtype: Of weights at 32 bits: "float32", "bfloat16" or "float16".

    All arrays are kept alive, and none is copied: a run reads what is in them then, the table included.
    A weight is `codebook[code] * scale` in float32; outliers take the place of the weights at their positions;
    the result is rounded to the nearest (even) where `out` is bfloat16.
    `sti_hf.shards.reference.decompress_reference` gives the same bits.

    Raises:
        ValueError: A size makes no sense.
        TypeError: An array has another dtype or is not contiguous.
    """

    def __init__(
        self,
        buffers: Sequence[NDArray[np.uint8] | torch.Tensor],
        table: NDArray[np.void],
        matrix: int,
        row_length: int,
        out: NDArray[np.float32] | torch.Tensor,
        *,
        matrices: int,
        full_dtype: str = "float32",
    ) -> None: ...
    def run(self, threads: int = 1) -> None:
        """
        Write the matrix. The GIL is released.

        Args:
            threads: Threads to use at most, the caller's among them; a small matrix is left to the caller alone.

        Raises:
            ValueError: A location or an outlier is out of range, or a fidelity makes no sense.
        """

def crc32c(buffer: bytes | memoryview | NDArray[np.uint8] | torch.Tensor, value: int = 0) -> int:
    """
    CRC-32C (Castagnoli) of a buffer of bytes.

    `value` is the checksum of the bytes before these: `crc32c(b, crc32c(a)) == crc32c(a + b)`.
    """

def isa() -> str:
    """
    The instruction set in use: the fastest that this processor has, unless the environment variable
    STI_HF_ISA or `set_isa` names another.
    """

def available_isas() -> list[str]:
    """The instruction sets that this processor has, fastest first."""

def set_isa(name: str) -> None:
    """
    Use this instruction set from now on. Raises ValueError where it is not available.
    """

def evict(path: str) -> None:
    """
    Drop a file's clean pages from the page cache, so that the next read comes from the disk.
    """

class Streamer:
    """
    Reads pieces of files ahead of compute, in order, on threads of its own.

    Args:
        paths: Files to read. They are opened once: it does not matter to the streamer if they are moved or replaced.
        direct: Read past the page cache where the file system allows it; elsewhere, and with False, reads are
            buffered and the pages are dropped after each read.
        threads: Reads under way at once.
        rate_limit: Bytes per second that the disk is made to look like, 0 for as fast as it is; for benchmarks.

    A forked child must make its own, with `for_child`. Methods may be called from any thread. When nothing has
    been started or released for a tenth of a second, memory that the process has freed goes back to the system
    (glibc).

    Raises:
        OSError: A file cannot be opened, or the system has no more threads.
    """

    def __init__(
        self, paths: Sequence[str], *, direct: bool = True, threads: int = 1, rate_limit: float = 0.0
    ) -> None: ...
    def for_child(self) -> Streamer:
        """
        A streamer for a forked child, which has this one but not its threads.

        It has threads of its own and reads the same open files, wherever their paths lead by now. Of this streamer,
        which may be in the midst of something, nothing else is used.

        Raises:
            OSError: The system has no more threads.
            RuntimeError: The streamer is closed.
        """

    def start(
        self, buffers: Sequence[NDArray[np.uint8] | torch.Tensor], requests: NDArray[np.void], pieces: NDArray[np.void]
    ) -> None:
        """
        Start reading.

        Args:
            buffers: 1-D uint8 arrays or tensors to read into, in which the locations are. Kept alive until the next
                `start` or `close`.
            requests: `REQUEST` `[n]`, in the order in which to read.
            pieces: `PIECE` `[k]`, for one request after the other. A piece is checked with the last request that reads
                a part of it: it may reach into requests right before that one, of the same step, that continue each
                other upwards or downwards, in the file and in memory.

        Raises:
            TypeError: An array has another dtype, or is not contiguous.
            ValueError: A record makes no sense or points outside the buffers.
            RuntimeError: The streamer is still reading, or closed.
        """

    def set_latest(self, latest: NDArray[np.float64]) -> None:
        """
        Say when each request of this run must have begun at the latest.

        A request that is late when its turn comes is given up, and with it those of its step that follow it: they
        are never read, and nobody waits for them. One that has begun is read to its end. Before, and with infinity,
        there is no limit.

        Args:
            latest: float64 `[n]`, one for each request, on the clock of `time.perf_counter`.

        Raises:
            ValueError: There are not as many as requests.
        """

    def wait(self, step: int) -> float:
        """
        Wait until all requests of a step are read and checked, or given up; return the seconds waited.

        Raises:
            StreamError: A request of this step or of one before it failed: the file is cut short, damaged or
                unreadable.
            Cancelled: The run was cancelled.
        """

    def wait_for(self, step: int, seconds: float) -> bool:
        """
        Wait for a step at most so long (0 to 1, in whole milliseconds).

        Returns whether all its requests are read and checked, or given up. Raises as `wait`.
        """

    def release(self, step: int) -> None:
        """Say that the staging memory of this step may be written again."""

    def cancel(self) -> None:
        """End the run. When this returns, nothing writes to the buffers."""

    def close(self) -> None:
        """
        Cancel, end the threads, and let go of files and buffers. The streamer cannot be started again.
        """

    def timings(self) -> NDArray[np.void]:
        """
        `TIMING` `[n]`: when each request of the last run began and was checked.
        """

    def outcomes(self) -> NDArray[np.uint8]:
        """
        What became of each request of the last run: uint8 `[n]`, values of `Outcome`.

        Of those that were checked this stays true after a cancel, and where another failed.
        """

    @property
    def bytes_read(self) -> int:
        """Bytes read since `start`."""

    @property
    def direct(self) -> list[bool]:
        """For each file, whether direct IO is in use."""

class RowReader:
    """
    Reads rows of a table, such as the embeddings of some tokens.

    Needs no threads, and serves a forked child as well.

    Args:
        path: File to read.
        rate_limit: Bytes per second that the disk is made to look like, 0 for as fast as it is; for benchmarks.

    Methods may be called from any thread.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: str, *, rate_limit: float = 0.0) -> None: ...
    def read(
        self,
        offsets: NDArray[np.int64],
        row_bytes: int,
        out: NDArray[np.uint8] | torch.Tensor,
        crcs: NDArray[np.uint32] | None = None,
        *,
        direct: bool = False,
    ) -> int:
        """
        Read rows.

        They go through the page cache, all at once: those read lately may still be there.

        Args:
            offsets: int64 `[k]`, ascending, of any alignment.
            row_bytes: Length of a row.
            out: uint8, `k * row_bytes` in all.
            crcs: uint32 `[k]`, CRC-32C of each row, or None to check nothing.
            direct: Read past the page cache, as a whole table in large parts should be.

        Returns the bytes read from the disk, in whole blocks.

        Raises:
            StreamError: The file ends before a row does, or a checksum does not match.
            ValueError: Offsets are not ascending, or sizes do not fit.
        """

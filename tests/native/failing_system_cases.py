"""Where the system has no more threads or descriptors, or a read fails; test_failing_system.py runs these."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from eval import accounting
from sti_hf import native
from sti_hf.native import Outcome
from tests.native.reading import BLOCK, CHUNK, SIZE, STEPS, aligned, in_steps, outcomes_of


class System:
    """The functions of failing_system.c."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self.allow_threads = library.allow_threads
        self.fail_reads = library.fail_reads
        self.fail_reads.argtypes = ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_long


@pytest.fixture
def system() -> Iterator[System]:
    system = System()
    yield system
    system.allow_threads(-1)
    system.fail_reads(0, 0, 0, 0)


def read_all(streamer: native.Streamer, content: bytes) -> bool:
    """Whether everything is read, and right."""
    buffer = aligned(STEPS * CHUNK)
    in_steps(content).start(streamer, buffer)
    streamer.wait(STEPS - 1)
    return buffer[:SIZE].tobytes() == content and outcomes_of(streamer) == [Outcome.CHECKED] * STEPS


@pytest.mark.parametrize("of_a_child", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("allowed", [0, 1, 2, 5])
def test_a_streamer_has_all_its_threads_or_is_not_made(
    system: System, path: Path, content: bytes, threads: int, allowed: int, of_a_child: bool
) -> None:
    whole = native.Streamer([str(path)], threads=threads)

    def make() -> native.Streamer:
        return whole.for_child() if of_a_child else native.Streamer([str(path)] * 3, threads=threads)

    gc.collect()  # what earlier tests left
    threads_before, descriptors_before = accounting.threads(), accounting.descriptors()
    system.allow_threads(allowed)
    if allowed < threads + 1:
        with pytest.raises(OSError, match="a thread that reads cannot be made: ") as caught:
            make()
        assert caught.value.errno == errno.EAGAIN
    else:
        make().close()
    assert accounting.descriptors() == descriptors_before
    assert accounting.threads() == threads_before
    system.allow_threads(-1)
    assert read_all(whole, content) and read_all(make(), content)


@pytest.mark.parametrize(
    ("make", "fitting"),
    [(lambda path: native.Streamer([path] * 10), 3), (native.RowReader, 1), (native.RowReader, 0)],
    ids=["streamer", "row reader, its second", "row reader"],
)
def test_a_file_for_which_there_is_no_descriptor(
    path: Path, content: bytes, make: Callable[[str], object], fitting: int
) -> None:
    gc.collect()
    descriptors_before = accounting.descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0) for _ in range(64)]  # so that there are no gaps below the limit
    for descriptor in taken[-fitting:] if fitting else ():
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            make(str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken[: len(taken) - fitting]:
            os.close(descriptor)
    assert caught.value.filename == str(path)
    assert accounting.descriptors() == descriptors_before
    make(str(path))


@pytest.mark.parametrize("allowed", [0, 1])
def test_decompression_makes_do_with_fewer_threads(system: System, allowed: int) -> None:
    """In a forked child, since elsewhere PyTorch's threads do it."""
    rows, columns = 2048, 1024
    weights = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    table = np.full(1, -1, dtype=native.SLICE)
    table["fidelity"], table["full_weights"] = 32, 0
    out = np.zeros_like(weights)
    buffer = weights.view(np.uint8).reshape(-1)
    decompression = native.Decompression([buffer], table, 0, columns, out, matrices=1)

    def is_right() -> bool:
        for threads, made in ((allowed, allowed), (-1, 3)):
            system.allow_threads(threads)
            out[:] = 0
            decompression.run(threads=4)
            if not (out == weights).all() or accounting.threads() != 1 + made:
                return False
        return True

    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if is_right() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("failure", [errno.EAGAIN, errno.ENOMEM, errno.EIO, "short"])
def test_a_read_that_fails_once(system: System, path: Path, content: bytes, threads: int, failure: int | str) -> None:
    """That request failed, the others are good, and the next start reads again."""
    streamer, buffer = native.Streamer([str(path)], threads=threads), aligned(STEPS * CHUNK)
    if failure == "short":
        if streamer.direct == [False]:
            pytest.skip("a second call reads what is missing")
        system.fail_reads(1, 5 * CHUNK, 0, 100)
    else:
        system.fail_reads(1, 5 * CHUNK, failure, 0)
    in_steps(content).start(streamer, buffer)
    streamer.wait(4)
    reason = "the system gave only 100" if failure == "short" else os.strerror(int(failure))
    for step in (5, 6, STEPS - 1):
        with pytest.raises(native.StreamError, match=rf"^{path}: .*{CHUNK} bytes at offset {5 * CHUNK}\b.* {reason}$"):
            streamer.wait(step)
    while Outcome.PENDING in outcomes_of(streamer):
        pass
    assert outcomes_of(streamer) == [Outcome.CHECKED] * 5 + [Outcome.FAILED] + [Outcome.CHECKED] * 5
    assert buffer[: 5 * CHUNK].tobytes() == content[: 5 * CHUNK]
    assert buffer[6 * CHUNK : SIZE].tobytes() == content[6 * CHUNK :]
    assert read_all(streamer, content)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    ("times", "error", "bytes_given"),
    [(3, errno.EINTR, 0), (1, 0, BLOCK), (1, 0, 3 * BLOCK)],
    ids=["interrupted", "a block", "blocks"],
)
def test_a_read_that_can_go_on_does(
    system: System, path: Path, content: bytes, direct: bool, times: int, error: int, bytes_given: int
) -> None:
    streamer = native.Streamer([str(path)], direct=direct)
    system.fail_reads(times, 5 * CHUNK, error, bytes_given)
    assert read_all(streamer, content)


def test_a_file_system_that_refuses_direct_reads_late(system: System, path: Path, content: bytes) -> None:
    streamer = native.Streamer([str(path)])
    if streamer.direct == [False]:
        pytest.skip("it refuses them early")
    system.fail_reads(1, 5 * CHUNK, errno.EINVAL, 0)
    assert read_all(streamer, content)
    assert streamer.direct == [False]


@pytest.mark.parametrize("failure", [errno.EAGAIN, errno.EIO])
def test_rows_that_cannot_be_read(system: System, path: Path, content: bytes, failure: int) -> None:
    reader, out = native.RowReader(str(path)), np.zeros(100, np.uint8)
    system.fail_reads(1, 5 * CHUNK, failure, 0)
    with pytest.raises(native.StreamError, match=f"{path}: cannot read .* {5 * CHUNK}: {os.strerror(failure)}"):
        reader.read(np.array([5 * CHUNK + 7]), 100, out, direct=True)
    reader.read(np.array([5 * CHUNK + 7]), 100, out, direct=True)
    assert out.tobytes() == content[5 * CHUNK + 7 :][:100]

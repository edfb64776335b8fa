"""The streamer reads what is asked for, where and when it may."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
import weakref
from pathlib import Path

import crc32c
import numpy as np
import pytest

from sti_hf import native
from sti_hf.native import PIECE, REQUEST, Outcome
from tests.native.reading import BLOCK, CHUNK, SIZE, STEPS, Reading, aligned, in_steps, outcomes_of, random_file


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("threads", [1, 4])
def test_reads_everything(path: Path, content: bytes, threads: int, direct: bool) -> None:
    buffer = aligned(STEPS * CHUNK)
    streamer = native.Streamer([str(path)], threads=threads, direct=direct)
    possible = streamer.direct
    before = time.perf_counter()
    in_steps(content).start(streamer, buffer)
    for step in range(STEPS):
        assert streamer.wait(step) >= 0
        assert streamer.wait_for(step, 0.0)
        assert outcomes_of(streamer)[: step + 1] == [Outcome.CHECKED] * (step + 1)
        assert buffer[: (step + 1) * CHUNK][:SIZE].tobytes() == content[: (step + 1) * CHUNK]
    assert streamer.bytes_read == SIZE
    timings = streamer.timings()
    assert timings.dtype == native.TIMING
    start, end = timings["start"], timings["end"]
    assert (before <= start).all() and (start <= end).all() and (end <= time.perf_counter()).all()
    assert (np.diff(start) >= 0).all()
    assert streamer.direct == (possible if direct else [False])
    streamer.close()


def test_long_requests_are_read_whole(tmp_path: Path) -> None:
    content = random_file(tmp_path / "long", 5_000_000)
    reading = Reading([content])
    reading.add(0, -(-5_000_000 // BLOCK) * BLOCK, 0, cuts=7)
    buffer = aligned(5_000_000 + BLOCK)
    streamer = native.Streamer([str(tmp_path / "long")], threads=2)
    reading.start(streamer, buffer)
    streamer.wait(0)
    assert buffer[:5_000_000].tobytes() == content


@pytest.mark.parametrize("threads", [1, 3])
def test_piece_may_begin_in_an_earlier_request(path: Path, content: bytes, threads: int) -> None:
    whole = Reading([content])
    whole.add(BLOCK, 3 * CHUNK, 0)
    _, pieces = whole.arrays()
    split = np.array(
        [(0, BLOCK + part * CHUNK, CHUNK, part * CHUNK, 0, 0, part == 2) for part in range(3)], dtype=REQUEST
    )
    buffer = aligned(3 * CHUNK)
    streamer = native.Streamer([str(path)], threads=threads)
    streamer.start([buffer], split, pieces)
    streamer.wait(0)
    assert buffer.tobytes() == content[BLOCK:][: 3 * CHUNK]

    damaged = bytearray(content)
    damaged[BLOCK + 10] ^= 1
    path.write_bytes(damaged)
    streamer.start([buffer], split, pieces)
    with pytest.raises(native.StreamError, match=f"{3 * CHUNK} bytes at offset {BLOCK} does not match"):
        streamer.wait(0)
    assert outcomes_of(streamer)[-1] == Outcome.FAILED


@pytest.mark.parametrize("threads", [1, 3])
def test_layers_may_be_read_downwards(path: Path, content: bytes, threads: int) -> None:
    # The upper request first; a piece that reaches across both is checked with the lower one.
    size = 8 * BLOCK
    buffer = aligned(size)
    streamer = native.Streamer([str(path)], threads=threads)
    first, last = BLOCK, size - 5
    checksum = crc32c.crc32c(content[first:last])
    requests = np.array([(0, 4 * BLOCK, 4 * BLOCK, 4 * BLOCK, 0, 0, 0), (0, 0, 4 * BLOCK, 0, 0, 0, 1)], dtype=REQUEST)
    for expected in (checksum, checksum ^ 1):
        streamer.start([buffer], requests, np.array([(first, last - first, expected, first)], dtype=PIECE))
        if expected == checksum:
            streamer.wait(0)
            assert buffer.tobytes() == content[:size]
        else:
            with pytest.raises(native.StreamError, match="checksum"):
                streamer.wait(0)
    streamer.close()


def test_several_files_and_buffers(tmp_path: Path) -> None:
    contents = [random_file(tmp_path / str(index), SIZE, seed=index) for index in range(3)]
    buffers = [aligned(SIZE + BLOCK) for _ in contents]
    reading = Reading(contents)
    for file in (2, 0, 1):
        reading.add(2 * BLOCK, 8 * BLOCK, file << 56 | BLOCK, file=file, step=file)
    streamer = native.Streamer([str(tmp_path / str(index)) for index in range(3)], threads=2)
    reading.start(streamer, *buffers)
    for file in range(3):
        streamer.wait(file)
        assert buffers[file][BLOCK : 9 * BLOCK].tobytes() == contents[file][2 * BLOCK : 10 * BLOCK]
        assert not buffers[file][:BLOCK].any() and not buffers[file][9 * BLOCK :].any()


def test_buffers_are_those_of_the_run_and_kept_until_the_next(path: Path, content: bytes) -> None:
    streamer = native.Streamer([str(path)], threads=2)
    alive = []
    for _ in range(3):
        buffer = aligned(STEPS * CHUNK)
        in_steps(content).start(streamer, buffer)
        streamer.wait(STEPS - 1)
        assert buffer[:SIZE].tobytes() == content
        alive.append(weakref.ref(buffer))
        del buffer
        assert [each() is not None for each in alive] == [False] * (len(alive) - 1) + [True]
    streamer.cancel()
    assert alive[-1]() is not None
    with pytest.raises(ValueError, match="destination of request 0"):  # a start that is refused changes nothing
        in_steps(content).start(streamer, aligned(BLOCK))
    assert alive[-1]() is not None
    assert outcomes_of(streamer) == [Outcome.CHECKED] * STEPS
    streamer.close()
    assert alive[-1]() is None
    assert outcomes_of(streamer) == [Outcome.CHECKED] * STEPS


def test_the_file_may_be_moved_and_replaced(path: Path, content: bytes) -> None:
    streamer = native.Streamer([str(path)])
    path.rename(path.with_name("elsewhere"))
    random_file(path, SIZE, seed=1)
    buffer = aligned(STEPS * CHUNK)
    in_steps(content).start(streamer, buffer)
    streamer.wait(STEPS - 1)
    assert buffer[:SIZE].tobytes() == content


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("staging", [1, 2, 5])
def test_staging_memory_is_written_only_after_its_release(
    path: Path, content: bytes, staging: int, threads: int
) -> None:
    buffer = aligned(staging * CHUNK)
    streamer = native.Streamer([str(path)], threads=threads)
    in_steps(content, staging).start(streamer, buffer)
    for step in range(STEPS):
        streamer.wait(step)
        if step + staging < STEPS:
            time.sleep(0.002)  # long enough to read the next chunk, if it were allowed
            assert not streamer.wait_for(step + staging, 0.0)
        expected = content[step * CHUNK : (step + 1) * CHUNK]
        assert buffer[step % staging * CHUNK :][: len(expected)].tobytes() == expected
        streamer.release(step)


def test_release_counts_from_the_first_step_on(path: Path, content: bytes) -> None:
    reading = Reading([content])
    reading.add(0, BLOCK, 0, step=3, wait_for=3)
    streamer = native.Streamer([str(path)])
    reading.start(streamer, aligned(BLOCK))
    for step in (2, 0, 0):
        streamer.release(step)
    time.sleep(0.02)
    assert not streamer.wait_for(3, 0.0)
    streamer.release(1)
    streamer.wait(3)


def test_nobody_waits_for_steps_without_requests(path: Path, content: bytes) -> None:
    streamer = native.Streamer([str(path)])
    with pytest.raises(RuntimeError, match="not been started"):
        streamer.wait(0)
    Reading([content]).start(streamer)
    assert streamer.wait_for(7, 0.0) and streamer.wait(7) < 1
    assert streamer.bytes_read == 0 and streamer.timings().shape == streamer.outcomes().shape == (0,)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no file system in memory")
def test_file_system_in_memory() -> None:
    path = Path(f"/dev/shm/sti_hf_test_{os.getpid()}")
    try:
        content = random_file(path, SIZE)
        buffer = aligned(STEPS * CHUNK)
        streamer = native.Streamer([str(path)])
        in_steps(content).start(streamer, buffer)
        streamer.wait(STEPS - 1)
        assert buffer[:SIZE].tobytes() == content
    finally:
        path.unlink(missing_ok=True)


def test_evicted_file_reads_the_same(path: Path, content: bytes) -> None:
    native.evict(str(path))
    assert path.read_bytes() == content


def test_rate_limit_is_kept(path: Path, content: bytes) -> None:
    streamer = native.Streamer([str(path)], threads=2, rate_limit=2e6)
    in_steps(content).start(streamer, aligned(STEPS * CHUNK))
    streamer.wait(STEPS - 1)
    timings = streamer.timings()
    assert timings["end"][-1] - timings["start"][0] >= SIZE / 2e6 - 0.005  # who woke late may catch up by 5 ms


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back by themselves")
def test_freed_memory_goes_back_when_nothing_runs(path: Path, content: bytes) -> None:
    """In a process of its own, whose heap nobody else has used."""
    script = f"""
import time
import numpy as np
from sti_hf import native

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

streamer = native.Streamer([{str(path)!r}])
blocks = [bytearray(100_000) for _ in range(600)]
last = blocks[-1]
del blocks
streamer.start([], np.empty(0, dtype=native.REQUEST), np.empty(0, dtype=native.PIECE))
before = resident()
time.sleep(1)
print(before - resident())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout) > 30e6

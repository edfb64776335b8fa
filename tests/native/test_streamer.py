"""The streamer reads what is asked for, where and when it may, and tells what went wrong."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import crc32c
import numpy as np
import pytest

from sti_hf import native
from tests.native.reading import BLOCK, Reading, aligned, random_file

SIZE = 43 * BLOCK + 1000  # the last block is short
GROUPS = 10  # and one more
CHUNK = 4 * BLOCK


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shards"


@pytest.fixture
def content(path: Path) -> bytes:
    return random_file(path, SIZE)


@pytest.fixture
def slow(path: Path, content: bytes) -> Iterator[tuple[native.Streamer, np.ndarray]]:
    """A streamer at one block a second, which has been asked for the whole file."""
    buffer = aligned(64 * BLOCK)
    streamer = native.Streamer([str(path)], [buffer], rate_limit=BLOCK)
    streamer.start(*in_groups(content).arrays())
    yield streamer, buffer
    streamer.close()


def in_groups(content: bytes, staging: int | None = None) -> Reading:
    """The whole file, one chunk a group. With `staging`, chunks share that many slots."""
    reading = Reading([content])
    for group in range(GROUPS + 1):
        slot = group if staging is None else group % staging
        wait_for = 0 if staging is None else max(0, group - staging + 1)
        reading.add(group * CHUNK, CHUNK, slot * CHUNK, group=group, wait_for=wait_for, cuts=3)
    return reading


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("threads", [1, 4])
def test_reads_everything(path: Path, content: bytes, threads: int, direct: bool) -> None:
    buffer = aligned((GROUPS + 1) * CHUNK)
    streamer = native.Streamer([str(path)], [buffer], threads=threads, direct=direct)
    possible = streamer.direct
    before = time.perf_counter()
    streamer.start(*in_groups(content).arrays())
    for group in range(GROUPS + 1):
        assert streamer.wait(group) >= 0
        assert streamer.ready(group)
        assert buffer[: (group + 1) * CHUNK][:SIZE].tobytes() == content[: (group + 1) * CHUNK]
    assert streamer.bytes_read == SIZE
    start, end = streamer.timings().T
    assert (before <= start).all() and (start <= end).all() and (end <= time.perf_counter()).all()
    assert (np.diff(start) >= 0).all()
    assert streamer.direct == (possible if direct else [False])
    streamer.close()


def test_long_requests_are_read_whole(tmp_path: Path) -> None:
    content = random_file(tmp_path / "long", 5_000_000)
    reading = Reading([content])
    reading.add(0, -(-5_000_000 // BLOCK) * BLOCK, 0, cuts=7)
    buffer = aligned(5_000_000 + BLOCK)
    streamer = native.Streamer([str(tmp_path / "long")], [buffer], threads=2)
    streamer.start(*reading.arrays())
    streamer.wait(0)
    assert buffer[:5_000_000].tobytes() == content


@pytest.mark.parametrize("threads", [1, 3])
def test_piece_may_begin_in_an_earlier_request(path: Path, content: bytes, threads: int) -> None:
    whole = Reading([content])
    whole.add(BLOCK, 3 * CHUNK, 0)
    split = np.array([[0, BLOCK + part * CHUNK, CHUNK, part * CHUNK, 0, 0, part == 2] for part in range(3)])
    buffer = aligned(3 * CHUNK)
    streamer = native.Streamer([str(path)], [buffer], threads=threads)
    streamer.start(split, whole.arrays()[1])
    streamer.wait(0)
    assert buffer.tobytes() == content[BLOCK:][: 3 * CHUNK]

    damaged = bytearray(content)
    damaged[BLOCK + 10] ^= 1
    path.write_bytes(damaged)
    streamer.start(split, whole.arrays()[1])
    with pytest.raises(native.StreamError, match=f"{3 * CHUNK} bytes at offset {BLOCK} does not match"):
        streamer.wait(0)


@pytest.mark.parametrize("threads", [1, 3])
def test_layers_may_be_read_downwards(path: Path, content: bytes, threads: int) -> None:
    # The upper request first; a piece that reaches across both is checked with the lower one.
    size = 8 * BLOCK
    buffer = aligned(size)
    streamer = native.Streamer([str(path)], [buffer], threads=threads)
    across = (BLOCK, size - 5)
    checksum = crc32c.crc32c(content[across[0] : across[1]])
    requests = [[0, 4 * BLOCK, 4 * BLOCK, 4 * BLOCK, 0, 0, 0], [0, 0, 4 * BLOCK, 0, 0, 0, 1]]
    pieces = [[across[0], across[1] - across[0], checksum, across[0]]]
    for expected in (checksum, checksum ^ 1):
        pieces[0][2] = expected
        streamer.start(np.array(requests, dtype=np.int64), np.array(pieces, dtype=np.int64))
        if expected == checksum:
            streamer.wait(0)
            assert buffer.tobytes() == content[:size]
        else:
            with pytest.raises(native.StreamError, match="checksum"):
                streamer.wait(0)
    streamer.close()


@pytest.mark.parametrize(("column", "value"), [(1, 6 * CHUNK), (3, 5 * CHUNK), (4, 1), (0, 1)])
def test_piece_may_not_begin_in_an_unrelated_request(path: Path, content: bytes, column: int, value: int) -> None:
    reading = Reading([content])
    reading.add(0, 2 * CHUNK, 0)
    split = np.array([[0, 0, CHUNK, 0, 0, 0, 0], [0, CHUNK, CHUNK, CHUNK, 0, 0, 1]])
    streamer = native.Streamer([str(path)] * 2, [aligned(8 * CHUNK)])
    streamer.start(split, reading.arrays()[1])
    streamer.wait(0)
    split[0, column] = value
    with pytest.raises(ValueError, match="piece 0: it is not inside its request and those that it continues"):
        streamer.start(split, reading.arrays()[1])


def test_several_files_and_buffers(tmp_path: Path) -> None:
    contents = [random_file(tmp_path / str(index), SIZE, seed=index) for index in range(3)]
    buffers = [aligned(SIZE + BLOCK) for _ in contents]
    reading = Reading(contents)
    for file in (2, 0, 1):
        reading.add(2 * BLOCK, 8 * BLOCK, file << 56 | BLOCK, file=file, group=file)
    streamer = native.Streamer([str(tmp_path / str(index)) for index in range(3)], buffers, threads=2)
    streamer.start(*reading.arrays())
    for file in range(3):
        streamer.wait(file)
        assert buffers[file][BLOCK : 9 * BLOCK].tobytes() == contents[file][2 * BLOCK : 10 * BLOCK]
        assert not buffers[file][:BLOCK].any() and not buffers[file][9 * BLOCK :].any()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("staging", [1, 2, 5])
def test_staging_memory_is_written_only_after_its_release(
    path: Path, content: bytes, staging: int, threads: int
) -> None:
    buffer = aligned(staging * CHUNK)
    streamer = native.Streamer([str(path)], [buffer], threads=threads)
    streamer.start(*in_groups(content, staging).arrays())
    for group in range(GROUPS + 1):
        streamer.wait(group)
        if group + staging <= GROUPS:
            time.sleep(0.002)  # long enough to read the next chunk, if it were allowed
            assert not streamer.ready(group + staging)
        expected = content[group * CHUNK : (group + 1) * CHUNK]
        assert buffer[group % staging * CHUNK :][: len(expected)].tobytes() == expected
        streamer.release(group)


def test_late_requests_are_given_up_with_the_rest_of_their_group(path: Path, content: bytes) -> None:
    reading = Reading([content])
    for place, group in enumerate((0, 1, 1, 1, 2)):
        reading.add(place * BLOCK, BLOCK, place * BLOCK, group=group, wait_for=group)
    buffer = aligned(5 * BLOCK)
    streamer = native.Streamer([str(path)], [buffer], threads=2)
    streamer.start(*reading.arrays())
    streamer.wait(0)
    assert not streamer.wait_for(1, 0.01), "it waits for its memory"
    never, past, to_come = np.inf, 0.0, time.perf_counter() + 100
    streamer.set_latest(np.array([past, to_come, past, never, never]))
    assert not streamer.ready(1), "given up only when its turn comes"
    streamer.release(0)
    assert streamer.wait_for(1, 1.0)
    streamer.release(1)
    streamer.wait(2)
    blocks = [buffer[place * BLOCK :][:BLOCK].tobytes() for place in range(5)]
    expected = [content[place * BLOCK :][:BLOCK] for place in range(5)]
    assert [blocks[place] == expected[place] for place in range(5)] == [True, True, False, False, True]
    assert not any(blocks[2] + blocks[3]), "never written"
    assert streamer.bytes_read == 3 * BLOCK
    assert np.isnan(streamer.timings()).all(axis=1).tolist() == [False, False, True, True, False]

    streamer.start(*reading.arrays())  # another run knows nothing of this
    for group in range(3):
        streamer.wait(group)
        streamer.release(group)
    assert buffer.tobytes() == content[: 5 * BLOCK]


def test_a_request_that_has_begun_is_read_to_its_end(path: Path, content: bytes) -> None:
    buffer = aligned((GROUPS + 1) * CHUNK)
    streamer = native.Streamer([str(path)], [buffer], threads=1, rate_limit=CHUNK / 0.1)
    streamer.start(*in_groups(content).arrays())
    while np.isnan(streamer.timings()[1, 0]):
        time.sleep(0.001)
    streamer.set_latest(np.zeros(GROUPS + 1))
    streamer.wait(GROUPS)
    read = ~np.isnan(streamer.timings()[:, 1])
    assert 2 <= read.sum() < GROUPS
    for group in np.flatnonzero(read):
        assert buffer[group * CHUNK :][:CHUNK].tobytes() == content[group * CHUNK :][:CHUNK]
    assert not buffer[int(read.sum()) * CHUNK :].any()
    streamer.cancel()
    streamer.start(*Reading([content]).arrays())


def test_damage_in_what_is_given_up_does_not_matter(path: Path, content: bytes) -> None:
    reading = Reading([content])
    for place in range(4):
        reading.add(place * BLOCK, BLOCK, place * BLOCK, group=place // 2, wait_for=place // 2)
    damaged = bytearray(content)
    damaged[3 * BLOCK + 5] ^= 1
    path.write_bytes(damaged)
    streamer = native.Streamer([str(path)], [aligned(4 * BLOCK)])
    for latest, message in ((0.0, None), (np.inf, "checksum")):
        streamer.start(*reading.arrays())
        streamer.wait(0)
        streamer.set_latest(np.array([0, 0, np.inf, latest]))
        streamer.release(0)
        if message is None:
            streamer.wait(1)
        else:
            with pytest.raises(native.StreamError, match=message):
                streamer.wait_for(1, 1.0)


def test_latest_moments_must_fit_the_requests(slow: tuple[native.Streamer, np.ndarray]) -> None:
    streamer, _ = slow
    with pytest.raises(ValueError, match=r"there are 11 requests, but 3 latest moments"):
        streamer.set_latest(np.zeros(3))
    with pytest.raises(TypeError, match="latest must be a float64 array"):
        streamer.set_latest(np.zeros(GROUPS + 1, dtype=np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seconds must be 0 to 1"):
        streamer.wait_for(0, float("nan"))
    assert not streamer.wait_for(GROUPS, 0.0)
    streamer.cancel()
    with pytest.raises(native.Cancelled):
        streamer.wait_for(GROUPS, 0.0)


def test_release_counts_from_the_first_group_on(path: Path, content: bytes) -> None:
    reading = Reading([content])
    reading.add(0, BLOCK, 0, group=3, wait_for=3)
    streamer = native.Streamer([str(path)], [aligned(BLOCK)])
    streamer.start(*reading.arrays())
    for group in (2, 0, 0):
        streamer.release(group)
    time.sleep(0.02)
    assert not streamer.ready(3)
    streamer.release(1)
    streamer.wait(3)


def test_groups_without_requests_are_ready(path: Path, content: bytes) -> None:
    streamer = native.Streamer([str(path)], [aligned(BLOCK)])
    with pytest.raises(RuntimeError, match="not been started"):
        streamer.wait(0)
    streamer.start(*Reading([content]).arrays())
    assert streamer.ready(7) and streamer.wait(7) < 1
    assert streamer.bytes_read == 0 and streamer.timings().shape == (0, 2)


def test_cancel_stops_writing_and_allows_a_new_start(slow: tuple[native.Streamer, np.ndarray], content: bytes) -> None:
    streamer, buffer = slow
    with pytest.raises(RuntimeError, match="still reading"):
        streamer.start(*in_groups(content).arrays())
    streamer.cancel()
    left = buffer.copy()
    with pytest.raises(native.Cancelled):
        streamer.wait(GROUPS)
    assert np.isnan(streamer.timings()[-1]).all()
    assert (buffer == left).all()

    streamer.start(*Reading([content]).arrays())
    assert streamer.ready(GROUPS)


def test_cancel_wakes_those_who_wait(slow: tuple[native.Streamer, np.ndarray]) -> None:
    streamer, _ = slow
    caught = []

    def wait() -> None:
        try:
            streamer.wait(GROUPS)
        except native.Cancelled as error:
            caught.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.02)
    streamer.cancel()
    waiting.join(timeout=10)
    assert len(caught) == 1


def test_cancel_after_the_end_changes_nothing(path: Path, content: bytes) -> None:
    streamer = native.Streamer([str(path)], [aligned((GROUPS + 1) * CHUNK)])
    streamer.start(*in_groups(content).arrays())
    streamer.wait(GROUPS)
    streamer.cancel()
    streamer.wait(GROUPS)


def test_closed(slow: tuple[native.Streamer, np.ndarray], content: bytes) -> None:
    streamer, _ = slow
    streamer.close()
    streamer.close()
    with pytest.raises(RuntimeError, match="closed"):
        streamer.start(*in_groups(content).arrays())


def test_waiting_can_be_interrupted(slow: tuple[native.Streamer, np.ndarray]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(KeyboardInterrupt):
            slow[0].wait(GROUPS)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("threads", [1, 3])
def test_flipped_byte(path: Path, content: bytes, threads: int) -> None:
    where = 5 * CHUNK + 100
    damaged = bytearray(content)
    damaged[where] ^= 1
    path.write_bytes(damaged)
    streamer = native.Streamer([str(path)], [aligned((GROUPS + 1) * CHUNK)], threads=threads)
    streamer.start(*in_groups(content).arrays())
    streamer.wait(4)
    for group in (5, GROUPS):
        with pytest.raises(native.StreamError, match=f"{path}: the checksum .* at offset {5 * CHUNK} does not match"):
            streamer.wait(group)
    streamer.wait(4)

    path.write_bytes(content)  # mended: the same streamer goes on
    streamer.cancel()
    streamer.start(*in_groups(content).arrays())
    streamer.wait(GROUPS)


@pytest.mark.parametrize("size", [7 * CHUNK, 7 * CHUNK + 1, 7 * CHUNK + BLOCK + 5, 0])
def test_file_cut_short(path: Path, content: bytes, size: int) -> None:
    path.write_bytes(content[:size])
    streamer = native.Streamer([str(path)], [aligned((GROUPS + 1) * CHUNK)])
    streamer.start(*in_groups(content).arrays())
    if size:
        streamer.wait(6)
    with pytest.raises(native.StreamError, match=f"{path}: the file is cut short: it ends at offset {size},"):
        streamer.wait(7)


@pytest.mark.parametrize("missing", [1, 1000])
def test_file_cut_short_in_its_last_block(path: Path, content: bytes, missing: int) -> None:
    path.write_bytes(content[:-missing])
    streamer = native.Streamer([str(path)], [aligned((GROUPS + 1) * CHUNK)])
    streamer.start(*in_groups(content).arrays())
    streamer.wait(GROUPS - 1)
    with pytest.raises(native.StreamError, match=f"cut short: it ends at offset {SIZE - missing},"):
        streamer.wait(GROUPS)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        native.Streamer([str(tmp_path / "none")], [])
    assert caught.value.filename == str(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        native.evict(str(tmp_path / "none"))


def test_unreadable_file(tmp_path: Path) -> None:
    reading = Reading([bytes(BLOCK)])
    reading.add(0, BLOCK, 0)
    streamer = native.Streamer([str(tmp_path)], [aligned(BLOCK)])
    streamer.start(*reading.arrays())
    with pytest.raises(native.StreamError, match=f"{tmp_path}: cannot read 4096 bytes at offset 0: Is a directory"):
        streamer.wait(0)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no file system in memory")
def test_file_system_in_memory() -> None:
    path = Path(f"/dev/shm/sti_hf_test_{os.getpid()}")
    try:
        content = random_file(path, SIZE)
        buffer = aligned((GROUPS + 1) * CHUNK)
        streamer = native.Streamer([str(path)], [buffer])
        streamer.start(*in_groups(content).arrays())
        streamer.wait(GROUPS)
        assert buffer[:SIZE].tobytes() == content
    finally:
        path.unlink(missing_ok=True)


def test_evicted_file_reads_the_same(path: Path, content: bytes) -> None:
    native.evict(str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 1, "no such file"),
        (0, -1, "no such file"),
        (1, 100, "offset is not a multiple of 4096"),
        (1, -BLOCK, "offset is not a multiple of 4096"),
        (2, 100, "length is not a multiple of 4096"),
        (2, 0, "length is not a multiple of 4096"),
        (3, CHUNK, "destination of request 0.*out of the range of buffer 0"),
        (3, 1 << 56, "there are 1 buffers"),
        (4, -1, "group is negative"),
        (6, 3, "more pieces than are given"),
        (6, 1, "more pieces than the requests have"),
        (6, -1, "more pieces than are given"),
    ],
)
def test_wrong_request(path: Path, content: bytes, column: int, value: int, message: str) -> None:
    reading = Reading([content])
    reading.add(0, CHUNK, 0, cuts=2)
    requests, pieces = reading.arrays()
    requests[0, column] = value
    streamer = native.Streamer([str(path)], [aligned(CHUNK)])
    with pytest.raises(ValueError, match=message):
        streamer.start(requests, pieces)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 8, "where its request puts it"),
        (1, CHUNK, "inside its request"),
        (1, -1, "inside its request"),
        (3, CHUNK, "inside its request"),
    ],
)
def test_wrong_piece(path: Path, content: bytes, column: int, value: int, message: str) -> None:
    reading = Reading([content])
    reading.add(0, CHUNK, 0, cuts=2)
    requests, pieces = reading.arrays()
    pieces[1, column] = value
    streamer = native.Streamer([str(path)], [aligned(CHUNK)])
    with pytest.raises(ValueError, match=f"piece 1: .*{message}"):
        streamer.start(requests, pieces)


def test_direct_reads_need_aligned_memory(path: Path, content: bytes) -> None:
    reading = Reading([content])
    reading.add(0, BLOCK, 8)
    buffer = aligned(2 * BLOCK)
    streamer = native.Streamer([str(path)], [buffer])
    if streamer.direct == [True]:
        with pytest.raises(ValueError, match="aligned to 4096"):
            streamer.start(*reading.arrays())
    buffered = native.Streamer([str(path)], [buffer], direct=False)
    buffered.start(*reading.arrays())
    buffered.wait(0)
    assert buffer[8 : BLOCK + 8].tobytes() == content[:BLOCK]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"rate_limit": -1.0}, ValueError, "rate_limit"),
        ({"rate_limit": float("nan")}, ValueError, "rate_limit"),
        ({"buffers": [b"read only"]}, TypeError, "buffer 0 must be a writable uint8 array"),
    ],
)
def test_wrong_argument(path: Path, content: bytes, change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        native.Streamer(**({"paths": [str(path)], "buffers": []} | change))


def test_rate_limit_is_kept(path: Path, content: bytes) -> None:
    streamer = native.Streamer([str(path)], [aligned((GROUPS + 1) * CHUNK)], threads=2, rate_limit=2e6)
    streamer.start(*in_groups(content).arrays())
    streamer.wait(GROUPS)
    timings = streamer.timings()
    assert timings[-1, 1] - timings[0, 0] >= SIZE / 2e6 - 0.005  # who woke late may catch up by 5 ms


def test_forked_child_makes_its_own(slow: tuple[native.Streamer, np.ndarray], path: Path, content: bytes) -> None:
    def read_in_child(streamer: native.Streamer, buffer: np.ndarray) -> bool:
        with pytest.raises(RuntimeError, match="after fork"):
            streamer.ready(0)
        own = native.Streamer([str(path)], [buffer])
        own.start(*in_groups(content).arrays())
        own.wait(GROUPS)
        own.close()
        return buffer[:SIZE].tobytes() == content

    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if read_in_child(*slow) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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

streamer = native.Streamer([{str(path)!r}], [])
blocks = [bytearray(100_000) for _ in range(600)]
last = blocks[-1]
del blocks
streamer.start(np.empty((0, 7), dtype=np.int64), np.empty((0, 4), dtype=np.int64))
before = resident()
time.sleep(1)
print(before - resident())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout) > 30e6

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sti_hf import native
from tests.native.reading import BLOCK, random_file

SIZE = 300 * BLOCK + 77


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows") / "embeddings"


@pytest.fixture(scope="module")
def content(path: Path) -> bytes:
    return random_file(path, SIZE)


@pytest.fixture
def reader(path: Path, content: bytes) -> native.RowReader:
    return native.RowReader(str(path))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 300),
    row_bytes=st.sampled_from([1, 300, 3072, BLOCK, 50_000, 200_000]),
    spread=st.sampled_from([3 * BLOCK, SIZE]),
    neighbours=st.booleans(),
    cached=st.booleans(),
    direct=st.booleans(),
)
def test_reads_the_rows(
    path: Path,
    content: bytes,
    seed: int,
    count: int,
    row_bytes: int,
    spread: int,
    neighbours: bool,
    cached: bool,
    direct: bool,
) -> None:
    count = min(count, 5_000_000 // row_bytes)
    last = min(spread, SIZE - row_bytes)
    offsets = np.sort(np.random.default_rng(seed).integers(0, last + 1, count))
    if neighbours and count:
        count = min(count, (SIZE - int(offsets[0])) // row_bytes)
        offsets = offsets[0] + row_bytes * np.arange(count)
    if not cached:
        native.evict(str(path))
    rows = [content[offset : offset + row_bytes] for offset in offsets]
    checksums = np.array([crc32c.crc32c(row) for row in rows], dtype=np.uint32)
    out = np.zeros((count, row_bytes), dtype=np.uint8)
    bytes_read = native.RowReader(str(path)).read(offsets, row_bytes, out, checksums, direct=direct)
    assert out.tobytes() == b"".join(rows)
    needed = {block for offset in offsets for block in range(offset // BLOCK, (offset + row_bytes - 1) // BLOCK + 1)}
    if neighbours or not direct:  # direct, rows that are none are read by themselves
        assert bytes_read <= BLOCK * len(needed)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing says what is in the page cache")
def test_rows_come_from_the_disk_once(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    content = random_file(path, SIZE)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    offsets, out = np.array([100, 5000, 9 * BLOCK - 10]), np.empty((3, 3072), dtype=np.uint8)
    reader = native.RowReader(str(path))
    native.evict(str(path))
    first, again = (reader.read(offsets, 3072, out) for _ in range(2))
    assert (first, again) in {(4 * BLOCK, 0), (0, 0)}  # some file systems live in memory
    assert out.tobytes() == b"".join(content[offset : offset + 3072] for offset in offsets)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing says what is in the page cache")
def test_neighbours_come_from_the_disk_once(path: Path, reader: native.RowReader, content: bytes) -> None:
    offsets = 100 + 3072 * np.arange(200)
    out = np.empty((200, 3072), dtype=np.uint8)
    native.evict(str(path))
    first, again = (reader.read(offsets, 3072, out) for _ in range(2))
    assert (first, again) in {(151 * BLOCK, 0), (0, 0)}  # some file systems live in memory
    assert out.tobytes() == content[100 : 100 + 200 * 3072]


def test_direct_reads_go_past_the_page_cache(reader: native.RowReader, content: bytes) -> None:
    offsets = 100 + 3072 * np.arange(200)
    out = np.empty((200, 3072), dtype=np.uint8)
    assert [reader.read(offsets, 3072, out, direct=True) for _ in range(2)] == [151 * BLOCK] * 2
    assert out.tobytes() == content[100 : 100 + 200 * 3072]


def test_the_disk_can_be_made_to_look_slow(path: Path, content: bytes) -> None:
    reader = native.RowReader(str(path), rate_limit=BLOCK / 0.01)
    offsets, out = 3072 * np.arange(100), np.empty((100, 3072), dtype=np.uint8)
    begun = time.perf_counter()
    assert reader.read(offsets, 3072, out, direct=True) == 75 * BLOCK
    assert time.perf_counter() - begun >= 0.75


def test_a_forked_child_reads_too(reader: native.RowReader, content: bytes) -> None:
    child = os.fork()
    if child == 0:
        out = np.empty(100, dtype=np.uint8)
        reader.read(np.array([7]), 100, out)
        os._exit(out.tobytes() != content[7:107])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        native.RowReader(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="rate_limit must be 0"):
        native.RowReader(str(tmp_path / "missing"), rate_limit=-1)


def test_checksum_of_a_row(reader: native.RowReader, path: Path, content: bytes) -> None:
    offsets = np.array([10, 5000, 90_000])
    checksums = np.array([crc32c.crc32c(content[offset : offset + 100]) for offset in offsets], dtype=np.uint32)
    out = np.empty((3, 100), dtype=np.uint8)
    reader.read(offsets, 100, out, checksums)
    checksums[1] ^= 1
    with pytest.raises(native.StreamError, match=f"{path}: the checksum of the row at offset 5000 does not match"):
        reader.read(offsets, 100, out, checksums)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("before", [0, SIZE - 199])
@pytest.mark.parametrize("offset", [SIZE - 99, SIZE, SIZE + 10 * BLOCK])
def test_row_behind_the_end(reader: native.RowReader, before: int, offset: int, direct: bool) -> None:
    out = np.empty(200, dtype=np.uint8)
    with pytest.raises(native.StreamError, match=f"cut short.*the row at offset {offset}"):
        reader.read(np.array([before, offset]), 100, out, direct=direct)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"offsets": np.array([5, 3])}, ValueError, "ascending"),
        ({"offsets": np.array([-1, 3])}, ValueError, "not negative"),
        ({"offsets": np.array([1.0, 3.0])}, TypeError, "offsets must be an int64 array"),
        ({"row_bytes": 0}, ValueError, "row_bytes must be positive"),
        ({"row_bytes": 99}, ValueError, "2 rows of 99 bytes"),
        ({"out": b"0" * 200}, TypeError, "out must be a writable uint8 array"),
        ({"crcs": np.zeros(1, dtype=np.uint32)}, ValueError, "one checksum for each offset"),
        ({"crcs": np.zeros(2, dtype=np.int64)}, TypeError, "crcs must be a uint32 array"),
    ],
)
def test_wrong_argument(reader: native.RowReader, change: dict, error: type[Exception], message: str) -> None:
    arguments = {"offsets": np.array([3, 5]), "row_bytes": 100, "out": np.empty(200, dtype=np.uint8)}
    reader.read(**arguments)
    with pytest.raises(error, match=message):
        reader.read(**(arguments | change))

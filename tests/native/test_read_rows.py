from __future__ import annotations

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
def streamer(path: Path, content: bytes) -> native.Streamer:
    return native.Streamer([str(path)], [])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 300),
    row_bytes=st.sampled_from([1, 300, 3072, BLOCK, 50_000, 200_000]),
    spread=st.sampled_from([3 * BLOCK, SIZE]),
    threads=st.integers(1, 8),
)
@pytest.mark.parametrize("direct", [True, False])
def test_reads_the_rows(
    path: Path, content: bytes, direct: bool, seed: int, count: int, row_bytes: int, spread: int, threads: int
) -> None:
    count = min(count, 5_000_000 // row_bytes)
    streamer = native.Streamer([str(path)], [], direct=direct)
    last = min(spread, SIZE - row_bytes)
    offsets = np.sort(np.random.default_rng(seed).integers(0, last + 1, count))
    rows = [content[offset : offset + row_bytes] for offset in offsets]
    checksums = np.array([crc32c.crc32c(row) for row in rows], dtype=np.uint32)
    out = np.zeros((count, row_bytes), dtype=np.uint8)
    bytes_read = streamer.read_rows(0, offsets, row_bytes, out, checksums, threads)
    assert out.tobytes() == b"".join(rows)
    needed = {block for offset in offsets for block in range(offset // BLOCK, (offset + row_bytes - 1) // BLOCK + 1)}
    if row_bytes <= BLOCK and len(needed) <= 16:  # few enough that rows which touch are read together
        assert bytes_read == BLOCK * len(needed)
    assert bytes_read >= BLOCK * len(needed)


def test_checksum_of_a_row(streamer: native.Streamer, path: Path, content: bytes) -> None:
    offsets = np.array([10, 5000, 90_000])
    checksums = np.array([crc32c.crc32c(content[offset : offset + 100]) for offset in offsets], dtype=np.uint32)
    out = np.empty((3, 100), dtype=np.uint8)
    streamer.read_rows(0, offsets, 100, out, checksums)
    checksums[1] ^= 1
    with pytest.raises(native.StreamError, match=f"{path}: the checksum of the row at offset 5000 does not match"):
        streamer.read_rows(0, offsets, 100, out, checksums)


@pytest.mark.parametrize("offset", [SIZE - 99, SIZE, SIZE + 10 * BLOCK])
def test_row_behind_the_end(streamer: native.Streamer, offset: int) -> None:
    out = np.empty(200, dtype=np.uint8)
    with pytest.raises(native.StreamError, match=f"cut short.*the row at offset {offset}"):
        streamer.read_rows(0, np.array([0, offset]), 100, out)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"file": 1}, ValueError, "no file 1"),
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
def test_wrong_argument(streamer: native.Streamer, change: dict, error: type[Exception], message: str) -> None:
    arguments = {"file": 0, "offsets": np.array([3, 5]), "row_bytes": 100, "out": np.empty(200, dtype=np.uint8)}
    streamer.read_rows(**arguments)
    with pytest.raises(error, match=message):
        streamer.read_rows(**(arguments | change))

"""Requests that make no sense are refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sti_hf import native
from tests.native.reading import BLOCK, CHUNK, Reading, aligned


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("file", 1, "no such file"),
        ("file", -1, "no such file"),
        ("offset", 100, "offset is not a multiple of 4096"),
        ("offset", -BLOCK, "offset is not a multiple of 4096"),
        ("length", 100, "length is not a multiple of 4096"),
        ("length", 0, "length is not a multiple of 4096"),
        ("target", CHUNK, "destination of request 0.*out of the range of buffer 0"),
        ("target", 1 << 56, "there are 1 buffers"),
        ("step", -1, "step is negative"),
        ("pieces", 3, "more pieces than are given"),
        ("pieces", 1, "more pieces than the requests have"),
        ("pieces", -1, "more pieces than are given"),
    ],
)
def test_wrong_request(path: Path, content: bytes, field: str, value: int, message: str) -> None:
    reading = Reading([content])
    reading.add(0, CHUNK, 0, cuts=2)
    requests, pieces = reading.arrays()
    requests[field][0] = value
    streamer = native.Streamer([str(path)])
    with pytest.raises(ValueError, match=message):
        streamer.start([aligned(CHUNK)], requests, pieces)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("target", 8, "where its request puts it"),
        ("length", CHUNK, "inside its request"),
        ("length", -1, "inside its request"),
        ("offset", CHUNK, "inside its request"),
    ],
)
def test_wrong_piece(path: Path, content: bytes, field: str, value: int, message: str) -> None:
    reading = Reading([content])
    reading.add(0, CHUNK, 0, cuts=2)
    requests, pieces = reading.arrays()
    pieces[field][1] = value
    streamer = native.Streamer([str(path)])
    with pytest.raises(ValueError, match=f"piece 1: .*{message}"):
        streamer.start([aligned(CHUNK)], requests, pieces)


@pytest.mark.parametrize(("field", "value"), [("offset", 6 * CHUNK), ("target", 5 * CHUNK), ("step", 1), ("file", 1)])
def test_piece_may_not_begin_in_an_unrelated_request(path: Path, content: bytes, field: str, value: int) -> None:
    reading = Reading([content])
    reading.add(0, 2 * CHUNK, 0)
    _, pieces = reading.arrays()
    split = np.array([(0, 0, CHUNK, 0, 0, 0, 0), (0, CHUNK, CHUNK, CHUNK, 0, 0, 1)], dtype=native.REQUEST)
    streamer, buffer = native.Streamer([str(path)] * 2), aligned(8 * CHUNK)
    streamer.start([buffer], split, pieces)
    streamer.wait(0)
    split[field][0] = value
    with pytest.raises(ValueError, match="piece 0: it is not inside its request and those that it continues"):
        streamer.start([buffer], split, pieces)


def test_direct_reads_need_aligned_memory(path: Path, content: bytes) -> None:
    reading = Reading([content])
    reading.add(0, BLOCK, 8)
    buffer = aligned(2 * BLOCK)
    streamer = native.Streamer([str(path)])
    if streamer.direct == [True]:
        with pytest.raises(ValueError, match="aligned to 4096"):
            reading.start(streamer, buffer)
    buffered = native.Streamer([str(path)], direct=False)
    reading.start(buffered, buffer)
    buffered.wait(0)
    assert buffer[8 : BLOCK + 8].tobytes() == content[:BLOCK]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"rate_limit": -1.0}, ValueError, "rate_limit"),
        ({"rate_limit": float("nan")}, ValueError, "rate_limit"),
    ],
)
def test_wrong_argument(path: Path, content: bytes, change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        native.Streamer([str(path)], **change)


OTHER_NAMES = np.dtype([(name + "_", "<i8") for name in native.REQUEST.names or ()])
OTHER_ORDER = np.dtype([(name, "<i8") for name in reversed(native.REQUEST.names or ())])
REAL_NUMBERS = np.dtype([(name, "<f8") for name in native.REQUEST.names or ()])
ONE_MORE = np.dtype([*((name, "<i8") for name in native.REQUEST.names or ()), ("more", "<i8")])


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("buffers", [b"read only"], "buffer 0 must be a writable uint8 array"),
        ("buffers", [np.zeros(8, np.int32)], "buffer 0 must be a writable uint8 array"),
        ("requests", np.zeros((1, 7), np.int64), "requests must be .* sti_hf.native.REQUEST"),
        ("requests", [[0, 0, BLOCK, 0, 0, 0, 0]], "sti_hf.native.REQUEST"),
        ("requests", None, "requests"),
        ("requests", np.zeros(2, native.PIECE), "sti_hf.native.REQUEST"),
        ("requests", np.zeros(2, OTHER_NAMES), "sti_hf.native.REQUEST"),
        ("requests", np.zeros(2, OTHER_ORDER), "sti_hf.native.REQUEST"),
        ("requests", np.zeros(2, REAL_NUMBERS), "sti_hf.native.REQUEST"),
        ("requests", np.zeros(2, ONE_MORE), "sti_hf.native.REQUEST"),
        ("requests", np.zeros(2, native.REQUEST.newbyteorder(">")), "sti_hf.native.REQUEST"),
        ("requests", np.zeros((1, 1), native.REQUEST), "sti_hf.native.REQUEST"),
        ("requests", np.zeros((), native.REQUEST), "sti_hf.native.REQUEST"),
        ("requests", np.zeros(4, native.REQUEST)[::2], "must be a contiguous array"),
        ("pieces", np.zeros((0, 4), np.int64), "pieces must be .* sti_hf.native.PIECE"),
        ("pieces", np.zeros(0, native.REQUEST), "sti_hf.native.PIECE"),
    ],
)
def test_wrong_type(path: Path, content: bytes, argument: str, value: Any, message: str) -> None:
    streamer = native.Streamer([str(path)])
    arguments = {"buffers": [], "requests": np.empty(0, native.REQUEST), "pieces": np.empty(0, native.PIECE)}
    streamer.start(**arguments)
    with pytest.raises(TypeError, match=message):
        streamer.start(**(arguments | {argument: value}))

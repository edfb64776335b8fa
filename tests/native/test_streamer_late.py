"""Reads that are late when their turn comes are given up."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from sti_hf import native
from sti_hf.native import Outcome
from tests.native.reading import BLOCK, CHUNK, STEPS, Reading, aligned, in_steps, outcomes_of


def test_late_requests_are_given_up_with_the_rest_of_their_step(path: Path, content: bytes) -> None:
    reading = Reading([content])
    for place, step in enumerate((0, 1, 1, 1, 2)):
        reading.add(place * BLOCK, BLOCK, place * BLOCK, step=step, wait_for=step)
    buffer = aligned(5 * BLOCK)
    streamer = native.Streamer([str(path)], threads=2)
    reading.start(streamer, buffer)
    streamer.wait(0)
    assert not streamer.wait_for(1, 0.01), "it waits for its memory"
    never, past, to_come = np.inf, 0.0, time.perf_counter() + 100
    streamer.set_latest(np.array([past, to_come, past, never, never]))
    assert not streamer.wait_for(1, 0.0), "given up only when its turn comes"
    streamer.release(0)
    assert streamer.wait_for(1, 1.0)
    streamer.release(1)
    streamer.wait(2)
    blocks = [buffer[place * BLOCK :][:BLOCK].tobytes() for place in range(5)]
    expected = [content[place * BLOCK :][:BLOCK] for place in range(5)]
    assert [blocks[place] == expected[place] for place in range(5)] == [True, True, False, False, True]
    assert not any(blocks[2] + blocks[3]), "never written"
    assert streamer.bytes_read == 3 * BLOCK
    timings = streamer.timings()
    for moments in (timings["start"], timings["end"]):
        assert np.isnan(moments).tolist() == [False, False, True, True, False]
    read, given_up = Outcome.CHECKED, Outcome.GIVEN_UP
    assert outcomes_of(streamer) == [read, read, given_up, given_up, read]

    reading.start(streamer, buffer)  # another run knows nothing of this
    for step in range(3):
        streamer.wait(step)
        streamer.release(step)
    assert buffer.tobytes() == content[: 5 * BLOCK]
    assert outcomes_of(streamer) == [read] * 5


def test_a_request_that_has_begun_is_read_to_its_end(path: Path, content: bytes) -> None:
    buffer = aligned(STEPS * CHUNK)
    streamer = native.Streamer([str(path)], threads=1, rate_limit=CHUNK / 0.1)
    in_steps(content).start(streamer, buffer)
    while np.isnan(streamer.timings()["start"][1]):
        time.sleep(0.001)
    streamer.set_latest(np.zeros(STEPS))
    streamer.wait(STEPS - 1)
    read = ~np.isnan(streamer.timings()["end"])
    assert (streamer.outcomes() == np.where(read, Outcome.CHECKED, Outcome.GIVEN_UP)).all()
    assert 2 <= read.sum() < STEPS - 1
    for step in np.flatnonzero(read):
        assert buffer[step * CHUNK :][:CHUNK].tobytes() == content[step * CHUNK :][:CHUNK]
    assert not buffer[int(read.sum()) * CHUNK :].any()
    streamer.cancel()
    Reading([content]).start(streamer)


def test_damage_in_what_is_given_up_does_not_matter(path: Path, content: bytes) -> None:
    reading = Reading([content])
    for place in range(4):
        reading.add(place * BLOCK, BLOCK, place * BLOCK, step=place // 2, wait_for=place // 2)
    damaged = bytearray(content)
    damaged[3 * BLOCK + 5] ^= 1
    path.write_bytes(damaged)
    streamer = native.Streamer([str(path)])
    for latest, message in ((0.0, None), (np.inf, "checksum")):
        reading.start(streamer, aligned(4 * BLOCK))
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
        streamer.set_latest(np.zeros(STEPS, dtype=np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seconds must be 0 to 1"):
        streamer.wait_for(0, float("nan"))
    assert not streamer.wait_for(STEPS - 1, 0.0)
    streamer.cancel()
    with pytest.raises(native.Cancelled):
        streamer.wait_for(STEPS - 1, 0.0)

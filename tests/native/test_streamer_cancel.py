"""A run ends where it is cancelled, waiting can be interrupted, and nothing writes to the buffers afterwards."""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sti_hf import native
from sti_hf.native import Outcome
from tests.native.reading import BLOCK, CHUNK, SIZE, STEPS, Reading, aligned, in_steps, outcomes_of


def test_cancel_stops_writing_and_allows_a_new_start(slow: tuple[native.Streamer, np.ndarray], content: bytes) -> None:
    streamer, buffer = slow
    with pytest.raises(RuntimeError, match="still reading"):
        in_steps(content).start(streamer, buffer)
    streamer.cancel()
    left = buffer.copy()
    with pytest.raises(native.Cancelled):
        streamer.wait(STEPS - 1)
    last = streamer.timings()[-1]
    assert np.isnan(last["start"]) and np.isnan(last["end"])
    assert (buffer == left).all()

    Reading([content]).start(streamer)
    assert streamer.wait_for(STEPS - 1, 0.0)


def test_what_was_checked_before_a_cancel_stays_so(path: Path, content: bytes) -> None:
    buffer = aligned(STEPS * CHUNK)
    streamer = native.Streamer([str(path)], threads=2)
    in_steps(content, staging=4).start(streamer, buffer)  # the fifth waits for its memory
    streamer.wait(3)
    streamer.cancel()
    assert outcomes_of(streamer) == [Outcome.CHECKED] * 4 + [Outcome.PENDING] * (STEPS - 4)
    with pytest.raises(native.Cancelled):
        streamer.wait(3)
    assert buffer[: 4 * CHUNK].tobytes() == content[: 4 * CHUNK]
    in_steps(content).start(streamer, buffer)
    streamer.wait(STEPS - 1)
    assert outcomes_of(streamer) == [Outcome.CHECKED] * STEPS


def test_cancel_wakes_those_who_wait(slow: tuple[native.Streamer, np.ndarray]) -> None:
    streamer, _ = slow
    caught = []

    def wait() -> None:
        try:
            streamer.wait(STEPS - 1)
        except native.Cancelled as error:
            caught.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.02)
    streamer.cancel()
    waiting.join(timeout=10)
    assert len(caught) == 1


def test_cancel_after_the_end_changes_nothing(path: Path, content: bytes) -> None:
    streamer = native.Streamer([str(path)])
    in_steps(content).start(streamer, aligned(STEPS * CHUNK))
    streamer.wait(STEPS - 1)
    streamer.cancel()
    streamer.wait(STEPS - 1)


def test_closed(slow: tuple[native.Streamer, np.ndarray], content: bytes) -> None:
    streamer, buffer = slow
    streamer.close()
    streamer.close()
    with pytest.raises(RuntimeError, match="closed"):
        in_steps(content).start(streamer, buffer)
    with pytest.raises(RuntimeError, match="closed"):
        streamer.for_child()


def test_waiting_can_be_interrupted(slow: tuple[native.Streamer, np.ndarray]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(KeyboardInterrupt):
            slow[0].wait(STEPS - 1)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_many_threads_start_cancel_and_wait(path: Path, content: bytes) -> None:
    """Each with buffers of its own, which it drops at once: what is checked is right all the same."""
    streamer = native.Streamer([str(path)], threads=2)
    reading, wrong = in_steps(content), []

    def run(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(150):
            buffer = aligned(64 * BLOCK)
            try:
                reading.start(streamer, buffer)
                streamer.wait(choice.randrange(STEPS))
            except native.Cancelled:
                pass
            except RuntimeError as error:
                if "still reading" not in str(error):
                    wrong.append(error)
            if choice.random() < 0.5:
                streamer.cancel()
            streamer.outcomes(), streamer.timings(), streamer.direct

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    streamer.cancel()
    buffer = aligned(STEPS * CHUNK)
    reading.start(streamer, buffer)
    streamer.wait(STEPS - 1)
    assert buffer[:SIZE].tobytes() == content

"""A forked child goes on from its parent's open files, with threads of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sti_hf import native
from tests.native.reading import BLOCK, SIZE, STEPS, aligned, in_steps, random_file


def succeeds_in_child(check: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if check() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def reads_right(streamer: native.Streamer, content: bytes) -> bool:
    buffer = aligned(64 * BLOCK)
    in_steps(content).start(streamer, buffer)
    streamer.wait(STEPS - 1)
    return buffer[:SIZE].tobytes() == content and not buffer[SIZE:].any()


def test_forked_child_makes_its_own(path: Path, content: bytes) -> None:
    streamer, buffer = native.Streamer([str(path)], rate_limit=100 * BLOCK), aligned(64 * BLOCK)
    in_steps(content).start(streamer, buffer)

    def check() -> bool:
        for use in (lambda: streamer.wait_for(0, 0.0), streamer.cancel, streamer.outcomes, streamer.close):
            with pytest.raises(RuntimeError, match=r"belongs to the parent process; after fork use `for_child\(\)`"):
                use()
        own = streamer.for_child()
        right = reads_right(own, content)
        own.close()
        return right

    assert succeeds_in_child(check)
    streamer.wait(STEPS - 1)  # its own run, of which the child knows nothing
    assert buffer[:SIZE].tobytes() == content
    streamer.close()


def test_child_reads_the_open_file_wherever_its_path_leads(path: Path, content: bytes) -> None:
    streamer = native.Streamer([str(path)])
    path.rename(path.with_name("elsewhere"))
    random_file(path, SIZE, seed=1)
    assert succeeds_in_child(lambda: reads_right(streamer.for_child(), content))
    path.unlink()
    assert succeeds_in_child(lambda: reads_right(streamer.for_child(), content))


def test_fork_in_the_midst_of_everything(path: Path, content: bytes) -> None:
    """Whatever the parent's threads hold at the fork, the child's streamer works."""
    streamer, stop = native.Streamer([str(path)], threads=2), threading.Event()
    reading = in_steps(content)

    def use() -> None:
        while not stop.is_set():
            reading.start(streamer, aligned(64 * BLOCK))
            streamer.outcomes(), streamer.timings(), streamer.direct
            streamer.cancel()

    thread = threading.Thread(target=use)
    thread.start()
    try:
        assert all(succeeds_in_child(lambda: reads_right(streamer.for_child(), content)) for _ in range(50))
    finally:
        stop.set()
        thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no list of descriptors")
def test_child_gives_the_files_back_with_the_last_streamer(path: Path, content: bytes) -> None:
    def open_files() -> int:
        return [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")].count(str(path))

    def check() -> bool:
        nonlocal streamer
        own: native.Streamer | None = streamer.for_child()
        counts = [open_files()]
        del streamer
        counts.append(open_files())
        assert own is not None and reads_right(own, content)
        own.close()
        counts.append(open_files())
        return counts == [1, 1, 0]

    streamer = native.Streamer([str(path)])
    assert open_files() == 1
    assert succeeds_in_child(check)


def test_with_its_own_settings(path: Path, content: bytes) -> None:
    """A streamer for a child has the threads and the rate of its parent's."""
    streamer = native.Streamer([str(path)], threads=2, rate_limit=2e6).for_child()
    assert reads_right(streamer, content)
    timings = streamer.timings()
    assert timings["end"][-1] - timings["start"][0] >= SIZE / 2e6 - 0.005
    assert np.isfinite(timings["start"]).all()

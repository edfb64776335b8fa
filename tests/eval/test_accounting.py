"""Threads and open files are counted as they are: those that live."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval import accounting


@contextmanager
def waiting_threads(count: int) -> Iterator[None]:
    end = threading.Event()
    waiting = [threading.Thread(target=end.wait) for _ in range(count)]
    for thread in waiting:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in waiting:
            thread.join()


def test_threads_are_those_that_live() -> None:
    before = accounting.threads()
    with waiting_threads(3):
        assert accounting.threads() == before + 3


def test_descriptors_are_those_that_are_open(tmp_path: Path) -> None:
    before = accounting.descriptors()
    with (tmp_path / "one").open("w"), (tmp_path / "two").open("w"):
        assert accounting.descriptors() == before + 2
    assert accounting.descriptors() == before

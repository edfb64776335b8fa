from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from sti_hf.forking import ThreadsLock, cached_property

HANGING_SECONDS = 30


class Slow:
    """One whose value takes until it may end."""

    def __init__(self, begun: threading.Event | None = None, may_end: threading.Event | None = None) -> None:
        self.begun, self.may_end, self.computed = begun, may_end, 0

    @cached_property
    def value(self) -> int:
        """What it is."""
        self.computed += 1
        if self.begun is not None and self.may_end is not None:
            self.begun.set()
            assert self.may_end.wait(HANGING_SECONDS)
        return 7


def ends_in_a_child(task: Callable[[], object]) -> bool:
    """Whether a forked child gets through, in the thread that forked."""
    child = os.fork()
    if child == 0:
        signal.alarm(HANGING_SECONDS)
        task()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_value_is_computed_once_and_tells_what_it_is() -> None:
    slow = Slow()
    assert (slow.value, slow.value, slow.computed) == (7, 7, 1)
    assert Slow.__dict__["value"] is Slow.value
    assert Slow.value.__doc__ == "What it is."


def test_a_child_forked_while_a_thread_computes_a_value_computes_its_own() -> None:
    begun, may_end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: Slow(begun, may_end).value)
    thread.start()
    assert begun.wait(HANGING_SECONDS)
    try:
        assert ends_in_a_child(lambda: Slow().value)
    finally:
        may_end.set()
        thread.join()


def test_a_child_finds_a_lock_free_that_another_thread_holds() -> None:
    lock, held, may_end = ThreadsLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            may_end.wait(HANGING_SECONDS)

    def take() -> None:
        with lock:
            pass

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(HANGING_SECONDS)
    try:
        assert ends_in_a_child(take)
    finally:
        may_end.set()
        thread.join()
    take()

"""Who may run: one thread at a time, nobody after `close`, and a forked child once it has made itself ready."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sti_hf.errors import SessionClosedError


class Guard:
    """Gives turns. `after_fork` is called before the first turn in a forked child."""

    def __init__(self, after_fork: Callable[[], None]) -> None:
        self._after_fork = after_fork
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._closed = False

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Holds the session for this thread, which may take further turns inside; gives whether this is the outermost.

        Raises `SessionClosedError`.
        """
        self._check_process()
        outermost = not self._lock._is_owned()  # type: ignore[attr-defined] # as threading.Condition asks
        with self._lock:
            self.check_open()
            yield outermost

    def check_open(self) -> None:
        """Raises `SessionClosedError` after `close`."""
        if self._closed:
            raise SessionClosedError("This session is closed; load the model again with from_pretrained.")

    def close(self, give_back: Callable[[], None]) -> None:
        """Lets nobody run any more, and calls `give_back`, once, when no other thread is running."""
        self._check_process()
        with self._lock:
            if not self._closed:
                self._closed = True
                give_back()

    def _check_process(self) -> None:
        # The parent's lock may be held by a thread that a forked child does not have.
        if os.getpid() != self._process:
            self._lock = threading.RLock()
            self._after_fork()
            self._process = os.getpid()

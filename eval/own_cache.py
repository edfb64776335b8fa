"""A cache of a benchmark's own: device profiles are of a disk rate, and of this hour."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_cache() -> Iterator[None]:
    """Inside, sti_hf keeps profiles, plans and stores in a new folder, which is gone afterwards."""
    before = os.environ.get("STI_HOME")
    with tempfile.TemporaryDirectory() as home:
        os.environ["STI_HOME"] = home
        try:
            yield
        finally:
            os.environ.pop("STI_HOME")
            if before is not None:
                os.environ["STI_HOME"] = before

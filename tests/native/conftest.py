from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sti_hf import native
from tests.native.reading import BLOCK, SIZE, aligned, in_steps, random_file


@pytest.fixture(params=native.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with each instruction set that this processor has."""
    before = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shards"


@pytest.fixture
def content(path: Path) -> bytes:
    return random_file(path, SIZE)


@pytest.fixture
def slow(path: Path, content: bytes) -> Iterator[tuple[native.Streamer, np.ndarray]]:
    """A streamer at one block a second, which has been asked for the whole file."""
    buffer = aligned(64 * BLOCK)
    streamer = native.Streamer([str(path)], rate_limit=BLOCK)
    in_steps(content).start(streamer, buffer)
    yield streamer, buffer
    streamer.close()

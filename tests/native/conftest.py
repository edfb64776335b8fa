from __future__ import annotations

from collections.abc import Iterator

import pytest

from sti_hf import native


@pytest.fixture(params=native.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with each instruction set that this processor has."""
    before = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)

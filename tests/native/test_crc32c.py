from __future__ import annotations

import crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sti_hf import native


def test_known_value(isa: str) -> None:
    assert native.crc32c(b"123456789") == 0xE3069283


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(0, 30_000), cut=st.floats(0, 1), start=st.integers(0, 8))
def test_equals_an_independent_implementation(isa: str, seed: int, size: int, cut: float, start: int) -> None:
    content = np.frombuffer(np.random.default_rng(seed).bytes(start + size), dtype=np.uint8)[start:]
    expected = crc32c.crc32c(content.tobytes())
    middle = int(cut * size)
    assert native.crc32c(content) == expected
    assert native.crc32c(content[middle:], native.crc32c(content[:middle])) == expected


def test_wrong_argument() -> None:
    with pytest.raises(TypeError, match="buffer must be a uint8 array or bytes"):
        native.crc32c(np.zeros(4, dtype=np.float32))

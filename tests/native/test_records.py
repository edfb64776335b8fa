from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from sti_hf import native
from sti_hf.errors import STIError


def test_dtypes_have_the_layout_of_c_structs() -> None:
    """Eight bytes a number, one after the other, as a C compiler lays them out; the extension compares the names."""
    for dtype in (native.REQUEST, native.PIECE, native.TIMING, native.SLICE):
        assert dtype.fields is not None
        ends = 0
        for name in dtype.names or ():
            field, offset = dtype.fields[name][:2]
            assert field.base.itemsize == 8 and offset == ends
            ends += field.itemsize
        assert ends == dtype.itemsize


def test_what_is_not_filled_in_is_absent() -> None:
    row = np.full(1, -1, dtype=native.SLICE)[0]
    assert all((row[name] == -1).all() for name in native.SLICE.names or ())


@pytest.mark.parametrize("error", [native.StreamError, native.Cancelled])
def test_errors_are_of_both_families(error: type[Exception]) -> None:
    assert issubclass(error, STIError) and issubclass(error, RuntimeError)
    for again in (pickle.loads(pickle.dumps(error("a sentence"))), copy.deepcopy(error("a sentence"))):
        assert type(again) is error and str(again) == "a sentence"

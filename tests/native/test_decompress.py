"""Every kernel gives the twin's bits, and reads nothing outside its buffers."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sti_hf import native
from sti_hf.shards.reference import decompress_reference

BITS_OF = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
FULL_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Slices:
    """Random slices of one matrix, at random places in random buffers."""

    seed: int
    fidelities: list[int]
    slice_rows: int = 3
    row_length: int = 24
    matrices: int = 3
    matrix: int = 1
    scaled: bool = True
    outliers: int = 4
    full_dtype: str = "float32"
    buffers: list[np.ndarray] = field(init=False)
    table: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.content = [bytearray() for _ in range(3)]
        self.table = np.full(len(self.fidelities), -1, dtype=native.SLICE)
        for row, bits in zip(self.table, self.fidelities):
            self._fill(row, bits)
        self.buffers = [np.frombuffer(bytes(content), dtype=np.uint8) for content in self.content]

    @property
    def weights(self) -> int:
        return self.slice_rows * self.row_length

    def _put(self, content: bytes) -> int:
        index = int(self.rng.integers(len(self.content)))
        self.content[index] += self.rng.bytes(int(self.rng.integers(9)))  # any alignment
        location = index << 56 | len(self.content[index])
        self.content[index] += content
        return location

    def _finite(self, count: int, dtype: str) -> bytes:
        """Values of any size: zeros of both signs, subnormal and huge ones too."""
        values = np.frombuffer(self.rng.bytes(count * np.dtype(dtype).itemsize), dtype=dtype)
        return np.where(np.isfinite(values), values, 0).astype(dtype).tobytes()

    def _fill(self, row: np.void, bits: int) -> None:
        row["fidelity"] = bits
        if bits == 32:
            values = torch.from_numpy(np.frombuffer(self._finite(self.weights, "<f4"), "<f4").copy())
            row["full_weights"] = self._put(
                values.to(FULL_DTYPES[self.full_dtype]).view(torch.uint8).numpy().tobytes()
            )
            return
        for plane in range(bits):
            row["planes"][plane] = self._put(self.rng.bytes(self.weights // 8))
        row["codebook"] = self._put(self._finite(2**bits, "<f4"))
        if self.scaled:
            row["scales"] = self._put(self._finite(self.slice_rows, "<f2"))
        if self.outliers:
            counts = self.rng.integers(self.outliers, size=self.matrices)
            total = int(counts.sum())
            positions = self.rng.integers(self.weights, size=total).astype("<u4").tobytes()
            row["outliers"] = self._put(counts.astype("<u4").tobytes() + positions + self._finite(total, "<f4"))

    def native(self, dtype: torch.dtype, threads: int = 1) -> torch.Tensor:
        """What the kernels write; fails if they write anything around it."""
        size, around = len(self.table) * self.weights, 64
        memory = torch.full((around + size + around,), 42.0, dtype=dtype)
        out = memory[around : around + size].view(-1, self.row_length)
        native.Decompression(
            self.buffers,
            self.table,
            self.matrix,
            self.row_length,
            out,
            matrices=self.matrices,
            full_dtype=self.full_dtype,
        ).run(threads)
        assert (memory[:around] == 42).all() and (memory[-around:] == 42).all()
        return out

    def reference(self, dtype: torch.dtype) -> torch.Tensor:
        rows = len(self.table) * self.slice_rows
        return decompress_reference(
            self.buffers,
            self.table,
            self.matrix,
            self.row_length,
            rows,
            dtype,
            matrices=self.matrices,
            full_dtype=self.full_dtype,
        )


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype
    integer = BITS_OF[expected.dtype]
    torch.testing.assert_close(actual.view(integer), expected.view(integer), rtol=0, atol=0)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    fidelities=st.lists(st.sampled_from([2, 3, 4, 5, 6, 32]), min_size=1, max_size=4),
    slice_rows=st.integers(1, 5),
    row_length=st.integers(1, 40).map(lambda groups: 8 * groups),
    matrices=st.integers(1, 4),
    scaled=st.booleans(),
    outliers=st.sampled_from([0, 6]),
    full_dtype=st.sampled_from(list(FULL_DTYPES)),
    threads=st.integers(1, 3),
    data=st.data(),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_twin(isa, dtype, seed, threads, data, matrices, **shape):  # type: ignore[no-untyped-def]
    matrix = data.draw(st.integers(0, matrices - 1))
    slices = Slices(seed, matrices=matrices, matrix=matrix, **shape)
    assert_same_bits(slices.native(dtype, threads), slices.reference(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_large_enough_for_several_threads(isa: str, dtype: torch.dtype) -> None:
    slices = Slices(seed=0, fidelities=[2, 3, 4, 5, 6, 32], slice_rows=1500, row_length=712, outliers=500)
    assert_same_bits(slices.native(dtype, threads=4), slices.reference(dtype))


def test_code_has_plane_1_as_its_most_significant_bit(isa: str) -> None:
    planes = np.array([0b00001111, 0b00110011, 0b01010101], dtype=np.uint8)  # weight 7 has the code 000, weight 0: 111
    buffer = np.concatenate([planes, np.arange(8, dtype=np.float32).view(np.uint8)])
    table = np.array([(3, -1, [0, 1, 2, -1, -1, -1], 3, -1, -1)], dtype=native.SLICE)
    out = np.empty((1, 8), dtype=np.float32)
    native.Decompression([buffer], table, 0, 8, out, matrices=1).run()
    assert out.tolist() == [[7, 6, 5, 4, 3, 2, 1, 0]]


def test_a_run_reads_what_the_table_says_then() -> None:
    slices = Slices(seed=0, fidelities=[6, 6])
    out = torch.empty(2 * slices.slice_rows, slices.row_length)
    arguments = (slices.buffers, slices.table, slices.matrix, slices.row_length, out)
    decompression = native.Decompression(*arguments, matrices=slices.matrices)
    decompression.run()
    assert_same_bits(out, slices.reference(torch.float32))
    slices.table["fidelity"] = 3  # with the codebook's first 8 values
    decompression.run()
    assert_same_bits(out, slices.reference(torch.float32))


def test_several_python_threads_at_once() -> None:
    cases = [Slices(seed, fidelities=[2, 6, 32], slice_rows=1024, row_length=1024) for seed in range(4)]
    expected = [case.reference(torch.float32) for case in cases]

    def is_right(index: int) -> bool:
        return all(torch.equal(cases[index].native(torch.float32, threads=3), expected[index]) for _ in range(20))

    with ThreadPoolExecutor(len(cases)) as python_threads:
        assert list(python_threads.map(is_right, range(len(cases)))) == [True] * len(cases)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no list of threads")
def test_forked_child_has_its_own_threads() -> None:
    slices = Slices(seed=0, fidelities=[4, 5], slice_rows=1024, row_length=1024)

    def decompress() -> bytes:  # without PyTorch, whose own threads do not survive a fork
        out = np.zeros((2048, 1024), dtype=np.float32)
        arguments = (slices.buffers, slices.table, slices.matrix, slices.row_length, out)
        native.Decompression(*arguments, matrices=slices.matrices).run(threads=3)
        return out.tobytes()

    def is_right() -> bool:
        before = len(os.listdir("/proc/self/task"))
        return decompress() == expected and before == 1 and len(os.listdir("/proc/self/task")) > 1

    expected = decompress()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if is_right() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("field", "what"),
    [("planes", "plane 1"), ("codebook", "codebook"), ("scales", "row scales"), ("outliers", "outlier")],
)
@pytest.mark.parametrize("location", [-2, 3 << 56, 1 << 55, "last byte"])
def test_location_out_of_range(field: str, what: str, location: int | str) -> None:
    slices = Slices(seed=1, fidelities=[4, 4])
    slices.table[field][1] = len(slices.buffers[0]) - 1 if location == "last byte" else location
    with pytest.raises(ValueError, match=f"slice 1's {what}.*buffer"):
        slices.native(torch.float32)


@pytest.mark.parametrize("plane", range(4))
def test_plane_out_of_range(plane: int) -> None:
    slices = Slices(seed=1, fidelities=[4])
    slices.table["planes"][0, plane] = len(slices.buffers[0]) - 1
    with pytest.raises(ValueError, match=f"slice 0's plane {plane + 1}.*buffer"):
        slices.native(torch.float32)


def test_full_weights_out_of_range() -> None:
    slices = Slices(seed=1, fidelities=[32])
    slices.table["full_weights"] = len(slices.buffers[0]) - 4 * slices.weights + 1
    with pytest.raises(ValueError, match="slice 0's full weights"):
        slices.native(torch.float32)


def test_outlier_counts_beyond_the_buffer() -> None:
    slices = Slices(seed=1, fidelities=[4])
    slices.buffers.append(np.array([0, 0, 2**32 - 1], dtype="<u4").view(np.uint8))  # of a matrix that is not asked for
    slices.table["outliers"][0] = 3 << 56
    with pytest.raises(ValueError, match=r"slice 0's outliers \(34359738372 bytes"):
        slices.native(torch.float32)


@pytest.mark.parametrize("threads", [1, 3])
def test_outlier_outside_the_slice(threads: int) -> None:
    slices = Slices(seed=1, fidelities=[4, 4, 4], slice_rows=1024, row_length=1024, matrices=1, matrix=0)
    slices.buffers.append(np.array([1, slices.weights, 0], dtype="<u4").view(np.uint8))
    slices.table["outliers"][0] = 3 << 56
    with pytest.raises(ValueError, match=f"outlier at {slices.weights}.*damaged"):
        slices.native(torch.float32, threads)


@pytest.mark.parametrize("bits", [0, 1, 7, 16, -1])
def test_unknown_fidelity(bits: int) -> None:
    slices = Slices(seed=1, fidelities=[4])
    slices.table["fidelity"] = bits
    with pytest.raises(ValueError, match=f"fidelity {bits}"):
        slices.native(torch.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"row_length": 20}, ValueError, "multiple of 8"),
        ({"row_length": 16}, ValueError, "shape"),
        ({"matrix": 3}, ValueError, "there are 3 matrices"),
        ({"matrix": -1}, ValueError, "matrix is -1"),
        ({"full_dtype": "float64"}, ValueError, "full_dtype"),
        ({"buffers": [np.zeros(8, dtype=np.int32)]}, TypeError, "buffer 0 must be a uint8 array"),
        ({"buffers": [np.zeros(16, dtype=np.uint8)[::2]]}, TypeError, "contiguous"),
        ({"table": np.zeros((2, 11), dtype=np.int64)}, TypeError, r"table must be .* the dtype sti_hf.native.SLICE"),
        ({"table": np.zeros(4, dtype=native.SLICE)[::2]}, TypeError, "table must be a contiguous array"),
        ({"table": np.zeros(0, dtype=native.SLICE)}, ValueError, "0 slices"),
        ({"out": np.zeros((5, 24), dtype=np.float32)}, ValueError, "shape"),
        ({"out": np.zeros((6, 24), dtype=np.float64)}, TypeError, "float32 or bfloat16"),
        ({"out": torch.zeros(24, 6).T}, TypeError, "contiguous"),
        ({"out": np.broadcast_to(np.float32(0), (6, 24))}, TypeError, "writable"),
    ],
)
def test_wrong_argument(change: dict, error: type[Exception], message: str) -> None:
    slices = Slices(seed=1, fidelities=[4, 4])
    arguments = {
        "buffers": slices.buffers,
        "table": slices.table,
        "matrix": slices.matrix,
        "row_length": slices.row_length,
        "out": np.zeros((6, 24), dtype=np.float32),
        "matrices": slices.matrices,
    }
    native.Decompression(**arguments)
    with pytest.raises(error, match=message):
        native.Decompression(**(arguments | change))

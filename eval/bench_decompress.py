"""How long native decompression takes, against filling the same output with a constant.

The output is one matrix of the working buffer, written again and again, as a run does. Reported are medians of
interleaved rounds, so that a slow moment of the machine hits all alike.

    python eval/bench_decompress.py --threads 1 2 --json decompress.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch

from sti_hf import native

FIDELITIES = (2, 3, 4, 5, 6, 32)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """What is timed: one matrix at one fidelity."""

    shape: tuple[int, int]
    dtype: str
    isa: str
    threads: int
    bits: int


@dataclass(frozen=True)
class Result(Case):
    """Medians: nanoseconds per weight, and how many times as long as the fill."""

    ns_per_weight: float
    ratio_to_fill: float


class Matrix:
    """Random shards of one matrix at all fidelities in one buffer, and the working buffer."""

    def __init__(self, shape: tuple[int, int], slices: int, dtype: str, outlier_share: float, scaled: bool) -> None:
        self.rows, self.row_length = shape
        self.slices = slices
        self.weights = self.rows * self.row_length
        self.slice_rows = self.rows // slices
        self.out = torch.empty(shape, dtype=DTYPES[dtype])
        rng = np.random.default_rng(0)
        self._parts: list[bytes] = []
        self._size = 0
        share = self.weights // slices
        planes = [self._put(rng.bytes(self.weights // 8)) for _ in range(6)]
        full = self._put(rng.standard_normal(self.weights, dtype=np.float32).tobytes())
        scales = self._put(rng.random(self.rows).astype("<f2").tobytes())
        codebooks = {bits: self._put(rng.standard_normal(2**bits).astype("<f4").tobytes()) for bits in range(2, 7)}
        count = int(outlier_share * share)
        positions = np.sort(rng.choice(share, count, replace=False)).astype("<u4")
        outliers = self._put(np.uint32(count).tobytes() + positions.tobytes() + rng.bytes(4 * count))
        self.buffer = np.frombuffer(b"".join(self._parts), dtype=np.uint8)
        self.tables = {bits: np.full(slices, -1, dtype=native.SLICE) for bits in FIDELITIES}
        for bits, table in self.tables.items():
            table["fidelity"] = bits
            each = np.arange(slices)
            if bits == 32:
                table["full_weights"] = full + each * share * 4
                continue
            for plane in range(bits):
                table["planes"][:, plane] = planes[plane] + each * share // 8
            table["codebook"] = codebooks[bits]
            table["scales"] = scales + each * self.slice_rows * 2 if scaled else -1
            table["outliers"] = outliers if count else -1
        self.decompressions = {
            bits: native.Decompression([self.buffer], table, 0, self.row_length, self.out, matrices=1)
            for bits, table in self.tables.items()
        }

    def _put(self, content: bytes) -> int:
        self._parts.append(content)
        self._size += len(content)
        return self._size - len(content)

    def decompress(self, bits: int, threads: int) -> None:
        self.decompressions[bits].run(threads)

    def fill(self) -> None:
        self.out.fill_(1.0)


def seconds_of(call: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(matrix: Matrix, shape: tuple[int, int], dtype: str, isa: str, threads: int, rounds: int) -> list[Result]:
    repeats = max(2, 4_000_000 // matrix.weights)
    native.set_isa(isa)
    fills: list[float] = []
    times: dict[int, list[float]] = {bits: [] for bits in FIDELITIES}
    for _ in range(rounds):
        fills.append(seconds_of(matrix.fill, repeats))
        for bits, seconds in times.items():
            seconds.append(seconds_of(partial(matrix.decompress, bits, threads), repeats))
    fill = statistics.median(fills)
    results = []
    for bits, seconds in times.items():
        median = statistics.median(seconds)
        results.append(Result(shape, dtype, isa, threads, bits, 1e9 * median / matrix.weights, median / fill))
    return results


def print_table(results: list[Result]) -> None:
    first = results[0]
    nanoseconds = "".join(f"{result.ns_per_weight:8.3f}" for result in results)
    ratios = "".join(f"{result.ratio_to_fill:6.2f}" for result in results)
    shape = f"{first.shape[0]}x{first.shape[1]}"
    print(f"{shape:>10} {first.dtype:>9} {first.isa:>12} {first.threads:>7}  {nanoseconds}   {ratios}", flush=True)


def shape_of(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    return int(rows), int(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=[(768, 768), (3072, 768)], metavar="ROWSxCOLS")
    parser.add_argument("--slices", type=int, default=12, help="slices of the matrix (default 12)")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--isas", nargs="+", choices=native.available_isas(), default=native.available_isas())
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--outliers", type=float, default=0.001, help="share of outliers (default 0.001)")
    parser.add_argument("--no-scales", action="store_true", help="codebooks without row scales")
    parser.add_argument("--json", metavar="FILE", help="write the results to this file")
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # the fill, on one thread like the decompression it is compared with
    print(f"{'':>41}  {'ns per weight at bits':<48}   times as long as a fill on one thread")
    columns = "".join(f"{bits:>8}" for bits in FIDELITIES) + "   " + "".join(f"{bits:>6}" for bits in FIDELITIES)
    print(f"{'matrix':>10} {'output':>9} {'isa':>12} {'threads':>7}  {columns}")
    results: list[Result] = []
    for shape in arguments.shapes:
        for dtype in arguments.dtypes:
            matrix = Matrix(shape, arguments.slices, dtype, arguments.outliers, not arguments.no_scales)
            for isa in arguments.isas:
                for threads in arguments.threads:
                    measured = measure(matrix, shape, dtype, isa, threads, arguments.rounds)
                    print_table(measured)
                    results += measured
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump([asdict(result) for result in results], file, indent=1)


if __name__ == "__main__":
    main()

"""How fast the streamer reads, against `dd iflag=direct` on the same file, and how fast it gathers rows.

Before every pass the file is dropped from the page cache. Reported are medians of interleaved passes.

    python -m eval.bench_stream --file /path/on/the/disk/of/interest --disk-rate 200 --request-kib 512

Shares are of the fastest dd. A rate is held for dd and the streamer alike, by the kernel, as root.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from eval.disk import add_rate_option, disk_rate
from sti_hf import native

BLOCK = 4096
MIB = 1 << 20


def aligned(size: int) -> np.ndarray:
    """uint8 `[size]` at a multiple of `BLOCK`."""
    memory = np.empty(size + BLOCK, dtype=np.uint8)
    memory.fill(0)
    start = -memory.ctypes.data % BLOCK
    return memory[start : start + size]


def make_file(path: str, size: int) -> None:
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(rng.bytes(MIB))
        file.flush()
        os.fsync(file.fileno())


class Sequential:
    """Reads the file from start to end, one request of `request_bytes` a step, with two steps of staging memory."""

    def __init__(self, path: str, size: int, request_bytes: int, threads: int, check: bool) -> None:
        self.size = size
        count = size // request_bytes
        self.buffer = aligned(2 * request_bytes)
        steps = np.arange(count)
        self.requests = np.zeros(count, dtype=native.REQUEST)
        self.requests["offset"], self.requests["length"] = steps * request_bytes, request_bytes
        self.requests["target"], self.requests["step"] = steps % 2 * request_bytes, steps
        self.requests["wait_for"], self.requests["pieces"] = np.maximum(steps - 1, 0), check
        self.pieces = np.empty(count if check else 0, dtype=native.PIECE)
        if check:
            content = np.memmap(path, dtype=np.uint8, mode="r")
            for name in ("offset", "length", "target"):
                self.pieces[name] = self.requests[name]
            self.pieces["crc32c"] = [
                native.crc32c(content[offset : offset + request_bytes]) for offset in self.pieces["offset"]
            ]
        self.streamer = native.Streamer([path], threads=threads)

    def __call__(self) -> float:
        start = time.perf_counter()
        self.streamer.start([self.buffer], self.requests, self.pieces)
        for step in range(len(self.requests)):
            self.streamer.wait(step)
            self.streamer.release(step)
        return time.perf_counter() - start


class Gather:
    """Reads rows at random places, as the embedding of one input does."""

    def __init__(self, path: str, size: int, rows: int, row_bytes: int) -> None:
        self.reader = native.RowReader(path)
        self.rng = np.random.default_rng(0)
        self.table = size // row_bytes
        self.rows, self.row_bytes = rows, row_bytes
        self.out = np.empty(rows * row_bytes, dtype=np.uint8)

    def __call__(self) -> float:
        offsets = np.sort(self.rng.choice(self.table, self.rows, replace=False)) * self.row_bytes
        start = time.perf_counter()
        self.reader.read(offsets, self.row_bytes, self.out)
        return time.perf_counter() - start


def dd(path: str, block: int) -> float:
    command = ["dd", f"if={path}", "of=/dev/null", f"bs={block}", "iflag=direct"]
    report = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C"})
    return float(report.stderr.rsplit("copied, ", 1)[1].split(" s")[0])


def medians(path: str, passes: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Seconds of each pass."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            native.evict(path)
            seconds[name].append(run())
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(path: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    size = os.path.getsize(path) // (4 * MIB) * (4 * MIB)
    passes: dict[str, Callable[[], float]] = {}
    for kib in arguments.request_kib:
        passes[f"dd iflag=direct, {kib} KiB"] = partial(dd, path, kib << 10)
        for threads in arguments.threads:
            for check in (False, True):
                name = f"streamer, {kib} KiB, {threads} thread{'s' * (threads > 1)}{', checksums' * check}"
                passes[name] = Sequential(path, size, kib << 10, threads, check)
    results: list[dict[str, object]] = []
    sequential = medians(path, passes, arguments.rounds)
    best_dd = min(seconds for name, seconds in sequential.items() if name.startswith("dd"))
    print(f"{'sequential':<50}{'MB/s':>8}{'of dd':>8}")
    for name, seconds in sequential.items():
        print(f"{name:<50}{size / seconds / 1e6:8.0f}{best_dd / seconds:8.1%}", flush=True)
        results.append({"name": name, "bytes": size, "seconds": seconds, "of_dd": best_dd / seconds})

    rows, row_bytes = arguments.rows, arguments.row_bytes
    name = f"{rows} random rows of {row_bytes} bytes"
    seconds = medians(path, {name: Gather(path, size, rows, row_bytes)}, 3 * arguments.rounds)[name]
    print(f"\n{name:<50}{1e3 * seconds:8.2f} ms", flush=True)
    results.append({"name": name, "bytes": rows * row_bytes, "seconds": seconds})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", help="read this file (default: a temporary one of 96 MiB in the current folder)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--request-kib", nargs="+", type=int, default=[256, 1024, 4096], help="multiples of 4")
    parser.add_argument("--rows", type=int, default=128, help="rows to gather (default 128)")
    parser.add_argument("--row-bytes", type=int, default=3072, help="bytes of a row (default 3072)")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved passes (default 9)")
    parser.add_argument("--json", metavar="FILE", help="write the results to this file")
    add_rate_option(parser)
    arguments = parser.parse_args()

    with ExitStack() as stack:
        path = arguments.file
        if path is None:
            path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(dir=".")), "random")
            make_file(path, 96 * MIB)
        how = stack.enter_context(disk_rate(Path(path).resolve().parent, arguments.disk_rate, arguments.emulate))
        print(f"disk: {how}")
        results = measure(path, arguments)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()

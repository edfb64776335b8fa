"""Measures a device for a store: what reading and computing cost (STI, section 4).

Everything is measured where it is used: reads with the streamer from the store itself, compute with the store's own
layers in the elastic runtime, whose times the session keeps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from sti_hf.errors import ConfigurationError
from sti_hf.planning import DeviceProfile
from sti_hf.profiling.compute import measure_compute
from sti_hf.profiling.consistency import PASSES
from sti_hf.profiling.reads import measure_reads, measure_rows, reading
from sti_hf.profiling.runner import LoadModel, Runner, running
from sti_hf.runtime.gemm import ComputePath, available_paths
from sti_hf.shards.store import ShardStore

TYPICAL_TOKENS = 128
DELAY_REPEATS = 6
HOPELESS = 4
"""Times as long as the fastest compute path: bfloat16 takes more where the processor has no instructions for it."""

STEPS = 3
"""How often `measure_device` tells of its progress."""


@dataclass(frozen=True)
class MeasuredDevice:
    """What `measure_device` found, and whether the machine was too `busy` for it to be believed."""

    profile: DeviceProfile
    busy: bool


def measure_device(
    store: ShardStore,
    load_model: LoadModel,
    *,
    compute_dtype: str = "auto",
    rate_limit: float = 0.0,
    progress: Callable[[str], object] = lambda step: None,
) -> MeasuredDevice:
    """Measures this device for `store`; takes seconds. `progress` is told what is being measured.

    Of the compute paths of `compute_dtype` the fastest at 128 tokens is taken. Compute never costs less at more
    tokens, slices or bits (but for 32, which takes another path). Raises `ConfigurationError` where this machine
    cannot compute in that dtype.
    """
    progress("reading")
    request_seconds, bytes_per_second = measure_reads(store, rate_limit)
    row_seconds = measure_rows(store, rate_limit)
    progress("compute paths")
    path = _fastest_path(store, load_model, compute_dtype)
    progress(f"layers ({path.dtype}, {path.gemm})")
    with running(store, load_model, path) as run:
        delay_per_byte = _measure_delay(run, rate_limit)
        short, long, widths = run.short(), run.long(), run.widths()
        compute = measure_compute(run, short, long, widths, store.fidelities)
    weights = store.grid.slices * store.grid.slice_weights
    profile = DeviceProfile(
        request_seconds=request_seconds,
        bytes_per_second=bytes_per_second,
        row_seconds=row_seconds,
        delay_per_byte=delay_per_byte,
        tokens=tuple(workload.all_tokens for workload in short),
        widths=tuple(widths),
        layer_seconds=tuple(map(tuple, compute.layer.tolist())),
        pairs=tuple(workload.pairs for workload in (short[-1], *long)),
        attention_seconds=tuple(compute.attention.tolist()),
        decompress_seconds={bits: seconds / weights for bits, seconds in compute.decompress.items()},
        before_seconds=tuple(compute.before.tolist()),
        after_seconds=tuple(compute.after.tolist()),
        compute_dtype=path.dtype,
        gemm=path.gemm,
    )
    return MeasuredDevice(profile, compute.busy)


def _fastest_path(store: ShardStore, load_model: LoadModel, compute_dtype: str) -> ComputePath:
    """The path on which a layer, decompression included, takes the least time."""
    paths = available_paths(compute_dtype)
    if not paths:
        raise ConfigurationError(f"This machine cannot compute in {compute_dtype}: choose another compute_dtype.")
    if len(paths) == 1:
        return paths[0]
    with ExitStack() as opened:
        runners = {path: opened.enter_context(running(store, load_model, path)) for path in paths}
        return fastest(paths, lambda path: runners[path](runners[path].whole_layer(TYPICAL_TOKENS)).seconds)


def fastest(paths: Sequence[ComputePath], measure: Callable[[ComputePath], float]) -> ComputePath:
    """The path whose best of a few passes takes the fewest seconds, as `measure` finds them. The passes of all paths
    take turns: a machine that is busy for a while does not choose. What is hopeless is not measured again."""
    best = dict.fromkeys(paths, math.inf)
    for _ in range(PASSES):
        hopeful = [path for path in paths if best[path] <= HOPELESS * min(best.values())]
        best |= {path: min(best[path], measure(path)) for path in hopeful}
    return min(paths, key=best.__getitem__)


def _measure_delay(run: Runner, rate_limit: float) -> float:
    """Seconds by which each byte that is read delays compute."""
    point = run.whole_layer(TYPICAL_TOKENS)
    delays = []
    for _ in range(DELAY_REPEATS):
        quiet = run(point).layer
        with reading(run.store, rate_limit) as streamer:
            begun, before = time.perf_counter(), streamer.bytes_read
            delayed = run(point).layer
            bytes_per_second = (streamer.bytes_read - before) / (time.perf_counter() - begun)
        delays.append((delayed - quiet) / (delayed * bytes_per_second) if bytes_per_second else 0.0)
    return max(0.0, median(delays))

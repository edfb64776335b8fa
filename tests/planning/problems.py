"""Planning problems small enough to check by brute force, and an independent pricing of their plans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sti_hf.model.grid import Grid
from sti_hf.planning import AdditiveImportance, DeviceProfile, PlanRequest, Workload
from sti_hf.planning.submodel import Submodel
from sti_hf.shards.layout import BLOCK, FIDELITIES, KINDS, LayerLayout

SIZES = {"tiny": (40, 3, 5), "minilm": (384, 32, 128), "bert": (768, 64, 256)}
"""Row length, rows of a head and FFN neurons of a slice; pieces of "tiny" are smaller than a block."""


def make_layouts(
    layers: int, slices: int, size: str = "minilm", full_itemsize: int = 4, seed: int = 0, droppable: bool = True
) -> list[LayerLayout]:
    """Layouts of a store whose headers vary, as outliers make them."""
    row_length, head, neurons = SIZES[size]
    rows = (("q", head), ("k", head), ("v", head), ("o", head), ("up", neurons), ("down", neurons))
    grid = Grid(layers, slices, row_length, rows, droppable)
    random = np.random.default_rng(seed)
    layouts, offset = [], 0
    for _ in range(layers):
        outliers = random.integers(0, grid.slice_weights // 300, size=slices)
        headers = tuple(int(2 * grid.slice_rows + 24 + 8 * count) for count in outliers)
        layouts.append(LayerLayout(grid, offset, headers, full_itemsize))
        offset += layouts[-1].region_bytes
    return layouts


def make_profile(**changes: Any) -> DeviceProfile:
    """A device with a disk of 200 MB/s, on which a layer of 4 slices computes 4 ms."""
    values: dict[str, Any] = {
        "request_seconds": 1e-4,
        "bytes_per_second": 200e6,
        "row_seconds": 1e-5,
        "delay_per_byte": 3e-10,
        "tokens": (32, 128),
        "widths": (1, 4),
        "layer_seconds": ((4e-4, 1e-3), (1e-3, 4e-3)),
        "pairs": (32**2, 128**2),
        "attention_seconds": (0.0, 2e-4),
        "decompress_seconds": {2: 1.0e-10, 3: 1.2e-10, 4: 1.5e-10, 5: 1.9e-10, 6: 2.4e-10, 32: 2e-10},
        "before_seconds": (1e-3, 2e-3),
        "after_seconds": (1e-3, 3e-3),
        "compute_dtype": "bfloat16",
        "gemm": "onednn",
    }
    return DeviceProfile(**(values | changes))


def make_importance(layers: int, slices: int, seed: int = 0, spread: float = 1.0) -> AdditiveImportance:
    """Distortions about 4^-bits, of shards whose worths lie `spread` apart (in the logarithm)."""
    random = np.random.default_rng(seed)
    worths = np.exp(spread * random.normal(size=(layers, slices, 1)))
    errors = np.array([4.0**-bits if bits < 32 else 0.0 for bits in FIDELITIES])
    return AdditiveImportance(worths * errors * np.exp(0.1 * random.normal(size=(layers, slices, len(FIDELITIES)))))


def make_request(layouts: Sequence[LayerLayout], profile: DeviceProfile | None = None, **changes: Any) -> PlanRequest:
    """A request with ample T and no preload buffer."""
    values: dict[str, Any] = {"target_latency": 100.0, "preload_budget": 0, "workload": Workload(128)}
    values |= {"row_bytes": 1536, "submodels": "any"}
    return PlanRequest(tuple(layouts), profile or make_profile(), **(values | changes))


def random_requests(count: int, shapes: Sequence[tuple[int, int]], seed: int) -> Iterator[tuple[PlanRequest, int]]:
    """Requests over disks, grids and fidelities, T between all-lowest and all-highest; and the seed of each."""
    random = np.random.default_rng(seed)
    fidelities = ((2, 3, 4), (2, 4, 6), (2, 3, 6, 32), (2, 3, 4, 5))
    for index in range(count):
        layers, slices = shapes[index % len(shapes)]
        size = ("minilm", "bert")[random.integers(2)]
        layouts = make_layouts(layers, slices, size, int(random.choice([2, 4])), seed=index)
        profile = make_profile(
            bytes_per_second=float(random.choice([90e6, 200e6, 1.4e9])),
            request_seconds=float(random.choice([0.0, 1e-4, 3e-4])),
            widths=(1, slices),
            layer_seconds=(np.array([[0.3, 1.0], [1.0, 3.0]]) * 3e-3 * random.random()).tolist(),
            before_seconds=[(0.0, 1e-3, 1e-2)[index % 3]] * 2,
        )
        chosen = fidelities[random.integers(len(fidelities))]
        budget = int(random.choice([0, 50_000, 600_000]))
        request = make_request(layouts, profile, preload_budget=budget, fidelities=chosen)
        submodel = Submodel(request, layers, slices)
        lowest, highest = (submodel.latency(submodel.uniform(bits)) for bits in (chosen[0], chosen[-1]))
        target = lowest + (highest - lowest) * random.random() ** 3 + 1e-8
        yield (
            make_request(layouts, profile, preload_budget=budget, fidelities=chosen, target_latency=target),
            index,
        )


def naive_preload(layouts: Sequence[LayerLayout], bits: np.ndarray, budget: int) -> np.ndarray:
    """The preload set by its definition, bool `[n, KINDS, M]`: one piece after the other, until one does not fit."""
    held = np.zeros((len(layouts), KINDS, layouts[0].grid.slices), dtype=bool)
    used = 0
    for layer, layout in enumerate(layouts):
        for kind, index in np.argwhere(layout.pieces_of(bits[layer])):
            held[layer, kind, index] = True
            if used + read_bytes(layout, held[layer]) > budget:
                held[layer, kind, index] = False
                return held
        used += read_bytes(layout, held[layer])
    return held


def read_bytes(layout: LayerLayout, pieces: np.ndarray) -> int:
    """Bytes that reading these pieces takes."""
    return int(layout.read_ranges(pieces)[:, 1].sum())


def naive_costs(request: PlanRequest, bits: np.ndarray, layers: Sequence[int]) -> tuple[list[float], list[float]]:
    """Seconds of IO and of compute of each executed layer, from the layout's own ranges; `bits` is `[N, M]`.

    Compute is what it takes while as much is read as the layer streams.
    """
    profile = request.profile
    layouts = [request.layouts[layer] for layer in layers]
    held = naive_preload(layouts, bits[list(layers)], request.preload_budget)
    io, compute = [], []
    for layout, row, preloaded in zip(layouts, bits[list(layers)], held):
        ranges = layout.read_ranges(layout.pieces_of(row) & ~preloaded)
        io.append(sum(profile.request_seconds + length / profile.bytes_per_second for _, length in ranges))
        delay = profile.delay_per_byte * sum(length for _, length in ranges)
        compute.append(profile.layer_compute(request.workload, row, request.grid.slice_weights) + delay)
    return io, compute


def naive_latency(request: PlanRequest, bits: np.ndarray, layers: Sequence[int]) -> float:
    """Seconds of a forward, event by event, with room for all reads."""
    io, compute = naive_costs(request, bits, layers)
    reading = request.profile.embedding_seconds(request.workload.all_tokens, request.row_bytes)
    computing = reading + request.profile.before_layers(request.workload)
    for seconds, work in zip(io, compute):
        reading += seconds
        computing = max(computing, reading) + work
    return computing + request.profile.after_layers(request.workload) + request.extra_seconds


def blocks_simulation(
    io_seconds: Sequence[float],
    staged_bytes: Sequence[int],
    compute_seconds: Sequence[float],
    places: Sequence[int],
    downwards: Sequence[bool],
    first_io: float,
    before: float,
) -> tuple[list[float], list[float]]:
    """Ends of reads and of compute; every block of the staging buffer is written on its own, when it is free."""
    free_at = dict.fromkeys(range(10_000), 0.0)
    clock, computed = first_io, first_io + before
    read, done = [], []
    for seconds, size, work, place, down in zip(io_seconds, staged_bytes, compute_seconds, places, downwards):
        blocks = list(range(place // BLOCK, (place + size) // BLOCK))
        for block in reversed(blocks) if down else blocks:
            clock = max(clock, free_at[block]) + seconds / len(blocks)
        clock += 0.0 if blocks else seconds
        computed = max(computed, clock) + work
        free_at.update(dict.fromkeys(blocks, computed))
        read.append(clock)
        done.append(computed)
    return read, done

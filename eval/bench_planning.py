"""How long planning takes: a BERT-base grid (12 x 12) and one of a very large model (80 x 64).

Each grid is planned for several T between what all-lowest and what 6 bits everywhere need, and S, by both allocators,
with the default importance and with one measured for every shard (random here). Reported are medians of whole calls of
`make_plan`, and the slowest of the cases.

    python eval/bench_planning.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from sti_hf.model.grid import Grid
from sti_hf.planning import AdditiveImportance, DeviceProfile, ImportanceProfile, PlanRequest, Workload, make_plan
from sti_hf.planning.planner import ALLOCATORS
from sti_hf.shards.layout import FIDELITIES, LayerLayout

SEQ_LEN = 128


@dataclass(frozen=True)
class Case:
    """A grid, the device that it is planned for, and the goal in seconds."""

    name: str
    grid: Grid
    bytes_per_second: float
    layer_seconds: float
    budgets: tuple[int, ...]
    goal: float


def grid_of(layers: int, slices: int, hidden: int, head: int, neurons: int) -> Grid:
    """A grid of layers with four attention and two FFN matrices."""
    rows = (("q", head), ("k", head), ("v", head), ("o", head), ("up", neurons), ("down", neurons))
    return Grid(layers, slices, hidden, rows)


CASES = (
    Case("12 x 12", grid_of(12, 12, 768, 64, 256), 200e6, 3e-3, (0, 10**6, 20 * 10**6), 10e-3),
    Case("80 x 64", grid_of(80, 64, 1024, 16, 64), 2e9, 1e-3, (0, 10**6, 100 * 10**6), 200e-3),
)


def layouts_of(grid: Grid) -> list[LayerLayout]:
    """Layouts with headers of varying size, as outliers make them."""
    random = np.random.default_rng(0)
    offset, layouts = 0, []
    for _ in range(grid.layers):
        outliers = random.integers(0, grid.slice_weights // 500, size=grid.slices)
        headers = tuple(int(2 * grid.slice_rows + 4 * len(grid.rows) + 8 * count) for count in outliers)
        layouts.append(LayerLayout(grid, offset, headers, full_itemsize=2))
        offset += layouts[-1].region_bytes
    return layouts


def profile_of(case: Case) -> DeviceProfile:
    """A device on which a layer computes in `case.layer_seconds`."""
    slices = case.grid.slices
    return DeviceProfile(
        request_seconds=1e-4,
        bytes_per_second=case.bytes_per_second,
        row_seconds=1e-5,
        delay_per_byte=1e-10,
        tokens=(SEQ_LEN,),
        widths=(1, slices),
        layer_seconds=((case.layer_seconds / slices, case.layer_seconds),),
        pairs=(SEQ_LEN**2,),
        attention_seconds=(0.0,),
        decompress_seconds=dict.fromkeys(FIDELITIES, 1e-10),
        before_seconds=(1e-3,),
        after_seconds=(4e-3,),
        compute_dtype="bfloat16",
        gemm="none",
    )


def measured_importance(grid: Grid) -> ImportanceProfile:
    """Random worths, of the size of quantization errors."""
    weights = np.exp(np.random.default_rng(1).normal(size=(grid.layers, grid.slices, 1)))
    return AdditiveImportance(weights * np.array([0.0 if bits == 32 else 4.0**-bits for bits in FIDELITIES]))


def calls(case: Case) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every planning that is timed, with its name."""
    layouts, profile = layouts_of(case.grid), profile_of(case)

    base = PlanRequest(
        tuple(layouts),
        profile,
        target_latency=1.0,
        preload_budget=0,
        workload=Workload(SEQ_LEN),
        submodels="any",
        row_bytes=2 * case.grid.row_length,
    )

    def latency(bits: int) -> float:
        return make_plan(replace(base, strategy="std_pipeline", fidelity=bits)).predicted_latency

    lowest, highest = latency(2), latency(6)
    for name, importance in (("default", None), ("measured", measured_importance(case.grid))):
        for allocator in ALLOCATORS:
            for share in (-0.3, 0.05, 0.3, 0.7, 1.2):
                for budget in case.budgets:
                    target = lowest + share * (highest - lowest) if share > 0 else lowest * (1 + share)
                    request = replace(
                        base,
                        target_latency=target,
                        preload_budget=budget,
                        allocator=allocator,
                        importance=importance,
                    )
                    name_of = f"{allocator}, {name} importance, T {target * 1e3:.0f} ms, S {budget / 1e6:.0f} MB"
                    # As for a new request: nothing that follows from the layouts is kept from the call before.
                    yield name_of, lambda request=request: make_plan(replace(request))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="calls of each planning (default 7)")
    parser.add_argument("--verbose", action="store_true", help="print every planning")
    arguments = parser.parse_args()
    for case in CASES:
        medians = {}
        for name, call in calls(case):
            seconds = []
            for _ in range(arguments.repeats):
                begun = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - begun)
            medians[name] = statistics.median(seconds)
            if arguments.verbose:
                print(f"  {medians[name] * 1e3:8.2f} ms  {name}")
        slowest = max(medians, key=lambda name: medians[name])
        print(
            f"{case.name}: median {statistics.median(medians.values()) * 1e3:.2f} ms, "
            f"slowest {medians[slowest] * 1e3:.2f} ms ({slowest}); goal {case.goal * 1e3:.0f} ms"
        )


if __name__ == "__main__":
    main()

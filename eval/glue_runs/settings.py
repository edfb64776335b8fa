"""What is compared: `sti` over T and S, and the baselines at uniform fidelities; and a range of T for a store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sti_hf import STIConfig
from sti_hf.integrations.store_planner import StorePlanner, plan_store
from sti_hf.planning import DeviceProfile, Workload, make_plan
from sti_hf.planning.baselines import BASELINES
from sti_hf.planning.importance_file import DEFAULT_ORDER
from sti_hf.shards.layout import FULL
from sti_hf.shards.store import ShardStore

STI = "sti"
SHORTEST = 1e-6
"""A target latency (seconds) that no plan keeps."""
ROOM = 1.02
"""T over what a plan is predicted to take."""
APART = 1.03
"""Target latencies at least so many times one another."""


@dataclass(frozen=True)
class Setting:
    """One thing that is measured. T (seconds) and S (bytes) are those of `sti`; a baseline has a fidelity instead, and
    is the same at any T and S."""

    strategy: str
    fidelity: int | None = None
    target: float | None = None
    preload_budget: int | None = None

    def config(self, seq_len: int, importance: str, allocator: str, compute_dtype: str) -> STIConfig:
        """What `from_pretrained` is asked for, with the paper's rule for submodels.

        A baseline is planned for the lowest latency that it can have.
        """
        return STIConfig(
            target_latency=self.target or SHORTEST,
            preload_budget=self.preload_budget or 0,
            strategy=self.strategy,
            fidelity=self.fidelity,
            allocator=allocator,
            importance=importance,
            compute_dtype=compute_dtype,
            seq_len=seq_len,
            submodels="any",
        )


def settings_of(
    strategies: Sequence[str], fidelities: Sequence[int], targets: Sequence[float], budgets: Sequence[int]
) -> list[Setting]:
    """All that these options ask for: `sti` first."""
    ours = [Setting(STI, target=target, preload_budget=budget) for target in targets for budget in budgets]
    baselines = [Setting(name, fidelity=bits) for name in BASELINES if name in strategies for bits in fidelities]
    return (ours if STI in strategies else []) + baselines


def usual_targets(store: ShardStore, profile: DeviceProfile, seq_len: int, budget: int) -> list[float]:
    """Target latencies from too short for any plan to ample, seconds.

    They lie about what the fastest submodel takes (with S of `budget` bytes), and what the whole model takes in a
    pipeline at 2, 3, 4, 6 and full bits (as far as there are full weights).
    """

    def latency(strategy: str, bits: int | None = None) -> float:
        config = STIConfig(SHORTEST, budget, strategy, bits, importance=DEFAULT_ORDER, submodels="any")
        return plan_store(store, profile, config, Workload(Workload.bucket(seq_len))).predicted_latency

    fastest = latency(STI)
    two, three, *more = (latency("std_pipeline", bits) for bits in (2, 3, 4, 6, FULL) if bits in store.fidelities)
    targets = [0.9 * fastest, (fastest + two) / 2, ROOM * two, (two + three) / 2, ROOM * three]
    targets += [ROOM * seconds for seconds in more]
    apart: list[float] = []
    for seconds in sorted(targets):
        if not apart or seconds > APART * apart[-1]:
            apart.append(_three_digits(seconds))
    return apart


def admits_uniform(
    store: ShardStore, profile: DeviceProfile, target: float, budget: int, seq_len: int, bits: int
) -> bool:
    """Whether the whole model with all shards at `bits` keeps T with S."""
    config = STIConfig(target, budget, importance=DEFAULT_ORDER, submodels="none")
    request = StorePlanner(store, profile).request(config, Workload(Workload.bucket(seq_len)))
    plan = make_plan(request.changed(fidelities=(bits,)))
    return plan.feasible


def _three_digits(value: float) -> float:
    digits = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(value / digits) * digits

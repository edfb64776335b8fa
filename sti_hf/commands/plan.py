"""`sti plan`."""

from __future__ import annotations

import argparse
from typing import Any

from sti_hf.commands.options import add_config_options, add_verb, measured_profile, print_by_stack, sti_config
from sti_hf.config import STIConfig
from sti_hf.drawing import draw_plan, terminal
from sti_hf.errors import InfeasibleLatencyError
from sti_hf.integrations.store_planner import StorePlanner
from sti_hf.planning import ExecutionPlan, make_plan, missed_target
from sti_hf.runtime.stacked_session import stack_shares
from sti_hf.shards.store import ShardStore


def add(verbs: Any) -> None:
    """Defines the verb."""
    add_config_options(add_verb(verbs, "plan", run, "show what would run for a latency and a preload buffer"))


def run(options: argparse.Namespace) -> int:
    """Runs the verb."""
    config = sti_config(options)
    store = ShardStore.open(options.store)
    shares = stack_shares(config, store)
    plans = {name: _plan(options, stack, shares[name]) for name, stack in store.stacks.items()}
    if options.json:
        print_by_stack(plans)
        return 0
    console = terminal()
    for name, plan in plans.items():
        if name:
            console.print(name)
        draw_plan(console, plan)
    return 0


def _plan(options: argparse.Namespace, store: ShardStore, config: STIConfig) -> ExecutionPlan:
    """The plan for a stack."""
    planner = StorePlanner(store, measured_profile(options, store, config.compute_dtype))
    plan = make_plan(planner.request(config, planner.workload(config)))
    if config.strict and not plan.feasible:
        raise InfeasibleLatencyError(missed_target(plan))
    return plan

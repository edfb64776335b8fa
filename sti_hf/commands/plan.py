"""`sti plan`."""

from __future__ import annotations

import argparse
from typing import Any

from sti_hf.commands.options import add_config_options, add_verb, measured_profile, sti_config
from sti_hf.drawing import draw_plan, terminal
from sti_hf.errors import InfeasibleLatencyError
from sti_hf.integrations.store_planner import StorePlanner
from sti_hf.planning import make_plan, missed_target
from sti_hf.shards.store import ShardStore


def add(verbs: Any) -> None:
    """Defines the verb."""
    add_config_options(add_verb(verbs, "plan", run, "show what would run for a latency and a preload buffer"))


def run(options: argparse.Namespace) -> int:
    """Runs the verb."""
    config = sti_config(options)
    store = ShardStore.open(options.store)
    profile = measured_profile(options, store, config.compute_dtype)
    planner = StorePlanner(store, profile)
    plan = make_plan(planner.request(config, planner.workload(config)))
    if config.strict and not plan.feasible:
        raise InfeasibleLatencyError(missed_target(plan))
    if options.json:
        print(plan.to_json())
    else:
        draw_plan(terminal(), plan)
    return 0

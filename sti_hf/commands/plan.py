"""`sti plan`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sti_hf.commands.options import add_config_options, add_verb, measured_profile, print_by_stack, sti_config
from sti_hf.config import STIConfig
from sti_hf.drawing import draw_plan, terminal
from sti_hf.errors import InfeasibleLatencyError
from sti_hf.integrations.store_planner import StorePlanner
from sti_hf.model.vocabulary import VOCABULARY
from sti_hf.planning import ExecutionPlan, make_plan, missed_target
from sti_hf.runtime.shares import LAYERS, part_shares
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
    plans = {name: _plans(options, stack, shares[name]) for name, stack in store.stacks.items()}
    if options.json:
        print_by_stack({name: _json(parts) for name, parts in plans.items()})
        return 0
    console = terminal()
    for name, parts in plans.items():
        for part, plan in parts.items():
            heading = part if len(parts) > 1 else name
            if heading:
                console.print(heading)
            draw_plan(console, plan)
    return 0


def _plans(options: argparse.Namespace, store: ShardStore, config: STIConfig) -> dict[str, ExecutionPlan]:
    """The plans for the layers of a stack and, where it runs in strips, for its vocabulary."""
    planner = StorePlanner(store, measured_profile(options, store, config.compute_dtype))
    vocabulary = planner.vocabulary_for(config)
    shares = part_shares(config, store, None if vocabulary is None else vocabulary.store)
    plans = {LAYERS: _plan(planner, shares[LAYERS])}
    if vocabulary is not None and not plans[LAYERS].is_full:
        plans[VOCABULARY] = _plan(vocabulary, shares[VOCABULARY])
    return plans


def _json(parts: dict[str, ExecutionPlan]) -> str:
    """The layers' plan, with that of the vocabulary in it."""
    layers, vocabulary = parts[LAYERS].to_json(), parts.get(VOCABULARY)
    if vocabulary is None:
        return layers
    return json.dumps({**json.loads(layers), VOCABULARY: json.loads(vocabulary.to_json())})


def _plan(planner: StorePlanner, config: STIConfig) -> ExecutionPlan:
    plan = make_plan(planner.request(config, planner.workload(config)))
    if config.strict and not plan.feasible:
        raise InfeasibleLatencyError(missed_target(plan))
    return plan

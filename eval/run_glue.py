"""GLUE: what `sti` makes of T and S, beside the paper's baselines.

    python -m eval.run_glue --store STORE --tasks sst2 --dataset FOLDER --disk-rate 200 --emulate --output RESULTS

The metric is of the half of the validation split on which no importance was profiled: the whole half, with the plan's
weights in a stock model in float32. A plan depends on the number of tokens; here it is the plan for `--seq-len`
tokens, the worst case, for every sentence. Times are of inputs of that many random tokens, in a live app: *cold*, with
the store's files taken out of the page cache before each forward, and *back to back*. `--streamed N` lets the model
that runs from shards answer N sentences with every plan, and compares the answers.

Small models read less than the kernel's throttle lets through at once: `--emulate` holds the rate evenly.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from eval.command import byte_count, one_line_errors, seconds
from eval.disk import add_rate_option, disk_rate
from eval.glue_runs.accuracy import PlanAccuracy
from eval.glue_runs.checks import checks
from eval.glue_runs.circumstances import command_line, machine
from eval.glue_runs.held_out import held_out
from eval.glue_runs.latency import Measured, measure
from eval.glue_runs.plot import plot
from eval.glue_runs.report import markdown
from eval.glue_runs.row import Row, Streamed
from eval.glue_runs.settings import STI, Setting, admits_uniform, settings_of, usual_targets
from eval.live_app import warm_up
from eval.own_cache import own_cache
from sti_hf.config import ALLOCATORS, COMPUTE_DTYPES, STRATEGIES
from sti_hf.integrations.device_profiles import device_profile
from sti_hf.planning import DeviceProfile, Workload
from sti_hf.planning.importance_file import DEFAULT_ORDER, profile_names, read_profile
from sti_hf.profiling.heat_map import check_matplotlib
from sti_hf.profiling.tasks import GLUE, GLUE_TASKS, get_task
from sti_hf.shards.layout import FIDELITIES, FULL
from sti_hf.shards.store import ShardStore


class GlueRun:
    """One task on one store."""

    def __init__(self, store: ShardStore, task: str, options: argparse.Namespace) -> None:
        self.store, self.options, self.task = store, options, get_task(task)
        names = profile_names(store)
        self.importance: str = options.importance or (task if task in names else DEFAULT_ORDER)
        self.profile, profiles = "none: the default order", {}
        if self.importance != DEFAULT_ORDER:
            profile, facts = read_profile(store, self.importance)
            method = getattr(profile, "method", "measured")
            self.profile = f"{self.importance} ({method}, {facts['sentences']} sentences of part {facts['part']!r})"
            profiles[self.importance] = facts
        self.part, seed = held_out(profiles, self.task.split)
        self.accuracy = PlanAccuracy(
            store, self.task, options.dataset, part=self.part, seed=seed, samples=options.samples
        )
        self.sentences = self.accuracy.singles(options.streamed) if options.streamed else []

    def measured(self, settings: Sequence[Setting]) -> list[Measured]:
        """Runs all settings; the disk must be held to its rate."""
        options, found = self.options, []
        for number, setting in enumerate(settings):
            config = setting.config(options.seq_len, self.importance, options.allocator, options.compute_dtype)
            found.append(measure(self.store, config, options.runs, self.sentences))
            _tell(f"{self.task.name}: {number + 1} of {len(settings)} settings timed")
        return found

    def row(self, setting: Setting, measured: Measured, admits_three_bits: bool | None) -> Row:
        """Everything about a setting."""
        plan = measured.plan
        return Row(
            setting=setting,
            feasible=plan.feasible if setting.strategy == STI else None,
            predicted=plan.predicted_latency,
            submodel=plan.submodel,
            mean_bits=float(plan.bits[plan.bits > 0].mean()),
            fidelity_counts=plan.fidelity_counts(),
            admits_three_bits=admits_three_bits,
            cold=measured.cold,
            back_to_back=measured.back_to_back,
            bytes_read=measured.bytes_read,
            row_bytes_read=measured.row_bytes_read,
            as_planned=measured.as_planned,
            memory=measured.memory,
            accuracy=self.accuracy.of(plan.bits),
            streamed=self._streamed(measured),
        )

    def _streamed(self, measured: Measured) -> Streamed | None:
        count = len(measured.answers)
        if count == 0:
            return None
        expected = self.accuracy.logits(measured.plan.bits)[:count]
        same = self.accuracy.same(measured.answers, expected)
        return Streamed(count, int(same.sum()), float((measured.answers - expected).abs().max()))

    def facts(self, how: str, compute: str) -> dict[str, str]:
        """How it ran, for the head of the report."""
        options, task = self.options, self.task
        longest = Workload.bucket(options.seq_len)
        sentences = len(self.accuracy.evaluation.examples)
        metrics = " and ".join(task.keys)
        return {
            "store": f"{self.store.path.name}, quantizer {self.store.index.quantizer}",
            "metric": f"{metrics} on {sentences} sentences, part {self.part!r} of split {task.split} of "
            f"{Path(options.dataset or task.dataset).name}",
            "importance": self.profile,
            "allocator": options.allocator,
            "plan": f"for inputs of up to {longest} tokens; timed with {options.seq_len} tokens, "
            f"{options.runs} cold forwards and {options.runs} back to back",
            "disk": how,
            "compute": f"{compute}, {torch.get_num_threads()} threads",
            "machine": machine(),
            "command": f"`{options.command}`",
        }


def run_task(store: ShardStore, task: str, options: argparse.Namespace) -> str:
    """Measures one task, writes its files, and returns its report."""
    run = GlueRun(store, task, options)
    with own_cache(), disk_rate(store.path, options.disk_rate, options.emulate) as how:
        warm_up(store.index.model_type, elastic=True)
        profile = device_profile(store, options.compute_dtype)
        targets = options.targets or usual_targets(store, profile, options.seq_len, max(options.preload_budgets))
        settings = settings_of(options.strategies, options.fidelities, targets, options.preload_budgets)
        measured = run.measured(settings)
    admitted = [_admits_three_bits(store, profile, *one, options.seq_len) for one in zip(settings, measured)]
    rows = [run.row(*one) for one in zip(settings, measured, admitted)]
    found = checks(rows)
    facts = run.facts(how, f"{profile.compute_dtype} ({profile.gemm})")
    title = f"{store.path.name} on {task}"
    report = markdown(title, facts, rows, found)
    if options.output:
        path = options.output / f"{store.path.name}-{task}"
        content: dict[str, Any] = {"facts": facts, "rows": [row.to_dict() for row in rows]}
        content["claims"] = [asdict(check) for check in found]
        path.with_name(path.name + ".json").write_text(json.dumps(content, indent=1))
        path.with_name(path.name + ".md").write_text(report + "\n")
        plot(title, run.task.leading, rows, path.with_name(path.name + ".png"))
    return report


def _admits_three_bits(
    store: ShardStore, profile: DeviceProfile, setting: Setting, measured: Measured, seq_len: int
) -> bool | None:
    """Whether some plan with three bits on average runs the whole model and keeps T; None for a baseline."""
    if setting.target is None or setting.preload_budget is None:
        return None
    plan = measured.plan
    if plan.feasible and (plan.bits > 0).all() and plan.bits.mean() >= 3:
        return True
    return admits_uniform(store, profile, setting.target, setting.preload_budget, seq_len, bits=3)


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="a store, profiled for its task or not")
    parser.add_argument("--tasks", nargs="+", required=True, choices=GLUE_TASKS)
    parser.add_argument("--dataset", metavar="ID_OR_DIR", help=f"default: {GLUE}")
    parser.add_argument("--samples", type=int, metavar="N", help="metric on N sentences of the half only")
    parser.add_argument(
        "--targets", nargs="+", type=seconds, metavar="T", help='such as "100ms"; default: from too short to ample'
    )
    parser.add_argument(
        "--preload-budgets",
        nargs="+",
        type=byte_count,
        metavar="S",
        default=[0, 10**6, 5 * 10**6],
        help="default: 0 1MB 5MB",
    )
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--fidelities", nargs="+", type=int, choices=FIDELITIES, help="of the baselines; default: all")
    parser.add_argument("--importance", metavar="NAME", help='default: the profile called as the task, else "default"')
    parser.add_argument("--allocator", choices=ALLOCATORS, default="marginal")
    parser.add_argument("--compute-dtype", choices=COMPUTE_DTYPES, default="auto", help="of the timed models")
    parser.add_argument("--seq-len", type=int, default=128, metavar="TOKENS", help="planned and timed (default 128)")
    parser.add_argument("--runs", type=int, default=20, help="forwards of each kind (default 20)")
    parser.add_argument("--streamed", type=int, default=0, metavar="N", help="sentences that streamed models answer")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write STORE-TASK.md, .json and .png there")
    add_rate_option(parser)
    parser.set_defaults(command=command_line("eval.run_glue", arguments))
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    parser, options = parse(arguments)
    transformers_logging.disable_progress_bar()
    with one_line_errors(parser):
        store = ShardStore.open(options.store)
        options.fidelities = options.fidelities or list(store.fidelities)
        if set(options.fidelities) - set(store.fidelities):
            raise ValueError(f"The store {store.path} was written without full weights ({FULL} bits).")
        if options.output:
            check_matplotlib()
            options.output.mkdir(parents=True, exist_ok=True)
        for task in options.tasks:
            print(run_task(store, task, options), flush=True)


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

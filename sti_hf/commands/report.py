"""`sti report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sti_hf.commands.options import DTYPE_HELP, FIELDS, add_store, add_verb, print_json, show_progress, sti_config
from sti_hf.config import ALLOCATORS, COMPUTE_DTYPES
from sti_hf.drawing import terminal
from sti_hf.shards.store import ShardStore


def add(verbs: Any) -> None:
    """Defines the verb."""
    parser = add_verb(verbs, "report", run, "write a page that shows a store: importance, plans, timelines, accuracy")
    parser.set_defaults(**dict.fromkeys(FIELDS))
    add_store(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, default=Path("report.html"), help="default: report.html"
    )
    parser.add_argument(
        "--results", metavar="JSON", type=Path, nargs="+", default=[], help="what eval/run_glue.py wrote, to draw too"
    )
    parser.add_argument("--target-latency", metavar="T", help="such as 200ms: one of those that the page shows")
    parser.add_argument("--preload-budget", metavar="S", help="such as 1MB: one of those that the page shows")
    parser.add_argument("--seq-len", metavar="TOKENS", type=int, help="tokens of the input to plan for")
    parser.add_argument("--allocator", choices=ALLOCATORS, help="what chooses the fidelities")
    parser.add_argument("--importance", metavar="NAME", help="the profile to plan with; default: the store's default")
    parser.add_argument("--compute-dtype", choices=COMPUTE_DTYPES, help=DTYPE_HELP)


def run(options: argparse.Namespace) -> int:
    """Runs the verb."""
    from sti_hf.reporting.page import write_report

    config = sti_config(options)
    store = ShardStore.open(options.store)
    show_progress(options)
    report = write_report(store, options.output, config, options.results)
    plans = len(report.grid.latencies) * len(report.grid.budgets)
    if options.json:
        size = options.output.stat().st_size
        print_json({"report": str(options.output), "bytes": size, "plans": plans, "runs": len(report.runs)})
        return 0
    terminal().print(f"{options.output}: {plans} plans, {len(report.runs)} of them run; open it in a browser.")
    return 0

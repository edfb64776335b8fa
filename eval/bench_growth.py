"""What a forward and a first answer cost as inputs and models grow, beside the prediction, and whether T is kept.

    python -m eval.bench_growth --work FOLDER --disk-rate 200 --json growth.json --plot growth.png

Of tokens, batch, layers and width one grows at a time, the others stay at `--base`. Models are like MPNet, with random
weights, which cost as much to read and compute as trained ones. T is a multiple of what the whole model, nothing
preloaded, is predicted to take at the lowest fidelity. *Live app* cold start: this process has run a tiny model of the
family, and the store's files are out of the page cache before every inference.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from eval.cold_forwards import LATE
from eval.disk import EMULATED, add_rate_option, disk_rate, evict
from eval.growth import models
from eval.growth.point import Point, measure, stock_warm
from eval.live_app import warm_up
from eval.markdown import table
from eval.throttle_credit import spend_credit, write_ballast

GROWING = {
    "tokens": (16, 64, 128, 256, 512),
    "batch": (1, 2, 4, 8, 16),
    "layers": (3, 6, 12, 24),
    "width": (256, 512, 768, 1024),
}
"""What grows, and through which values; 24 layers of 1024 are BERT-large."""


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models and stores, kept for the next run")
    for name, values in GROWING.items():
        parser.add_argument(f"--{name}", type=int, nargs="*", default=values, help=f"default {values}")
    parser.add_argument("--base", type=int, nargs=4, default=(128, 1, 12, 768), metavar=tuple(map(str.upper, GROWING)))
    parser.add_argument("--large", action="store_true", help="also grow tokens on a model of BERT-large's size")
    parser.add_argument(
        "--factors", type=float, nargs="+", default=[0.7, 1.0, 1.5, 2.5], metavar="F", help="T = F × ..."
    )
    parser.add_argument("--preload-budget", default="1MB", metavar="S")
    parser.add_argument("--quantizer", choices=("lloyd", "gobo"), default="gobo")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--markdown", type=Path, help="write the tables here, too")
    parser.add_argument("--plot", type=Path, help="draw them here")
    add_rate_option(parser)
    return parser.parse_args()


def points_of(arguments: argparse.Namespace) -> dict[str, list[Point]]:
    """The points to measure, by what grows."""
    base = Point(**dict(zip(GROWING, arguments.base)))
    points = {name: [replace(base, **{name: value}) for value in getattr(arguments, name)] for name in GROWING}
    if arguments.large:
        large = replace(base, layers=24, width=1024)
        points["tokens, BERT-large"] = [replace(large, tokens=value) for value in arguments.tokens]
    return {name: of_name for name, of_name in points.items() if of_name}


def measured(
    points: Mapping[str, Sequence[Point]], arguments: argparse.Namespace, throttled: float | None
) -> dict[str, list[dict[str, Any]]]:
    """The rows of all points; one that several have is measured once. Models are made before.

    `throttled`: the rate in MB/s to which the kernel holds the disk, if it does.
    """
    ballast = arguments.work / "ballast"
    write_ballast(ballast)

    def make_cold(store: Path) -> None:
        evict(store)
        if throttled is not None:
            spend_credit(ballast, throttled)

    every = list(dict.fromkeys(point for of_name in points.values() for point in of_name))
    stores = {}
    for size in dict.fromkeys(point.size for point in every):
        print(f"preparing {size.name}", file=sys.stderr)
        stores[size] = models.store(size, arguments.work, arguments.quantizer)
    rows = {}
    for point in every:
        print(f"measuring {point}", file=sys.stderr)
        rows[point] = [
            measure(stores[point.size], point, factor, arguments.preload_budget, arguments.runs, make_cold)
            for factor in arguments.factors
        ]
        stock = stock_warm(point, arguments.work, arguments.runs) * 1e3
        rows[point] = [{**row, "stock_ms": stock} for row in rows[point]]
    return {name: [row for point in of_name for row in rows[point]] for name, of_name in points.items()}


def markdown(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A table for each of what grows."""
    head = ["layers", "width", "tokens", "batch", "T (ms)", "n × m", "mean bits", "predicted (ms)", "median (ms)"]
    head += ["worst (ms)", f"under {LATE} T", "TTFA (ms)", "Transformers fp32, warm (ms)"]
    tables = [f"### {name}\n\n{table(head, map(_cells, of_name))}" for name, of_name in rows.items()]
    return "\n\n".join(tables)


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        *(str(row[name]) for name in ("layers", "width", "tokens", "batch")),
        f"{row['target_ms']:.0f}" + ("" if row["feasible"] else " (missed by the plan)"),
        "{} × {}".format(*row["submodel"]),
        f"{row['mean_bits']:.2f}",
        *(f"{row[name]:.0f}" for name in ("predicted_ms", "median_ms", "worst_ms")),
        f"{row['share_in_time']:.0%}",
        *(f"{row[name]:.0f}" for name in ("ttfa_ms", "stock_ms")),
    ]


def main() -> None:
    arguments = options()
    transformers_logging.disable_progress_bar()
    arguments.work.mkdir(parents=True, exist_ok=True)
    # Device profiles are of a disk rate: a cache of its own keeps this one's apart.
    os.environ["STI_HOME"] = str(arguments.work.resolve() / f"home-{arguments.disk_rate or 'unlimited'}")
    with disk_rate(arguments.work, arguments.disk_rate, arguments.emulate) as how:
        warm_up("mpnet", elastic=True)
        rows = measured(points_of(arguments), arguments, None if EMULATED in how else arguments.disk_rate)
    text = markdown(rows)
    title = f"disk: {how}; {torch.get_num_threads()} threads; S = {arguments.preload_budget}; {arguments.runs} runs"
    print(f"{title}\n\n{text}")
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps({"settings": title, "rows": rows}, indent=1))
    if arguments.plot:
        from eval.growth.plot import plot

        plot(title, rows, arguments.plot)


if __name__ == "__main__":
    main()

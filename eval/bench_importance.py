"""What importance buys: plans of equal bytes, guided by importance profiles, by the default order, and by chance.

    python -m eval.bench_importance --store STORE --task sst2 --dataset FOLDER --json importance.json

The only limit of these plans is the bytes that one inference reads: as many as the model takes with 2.25, 2.5 or 3
bits everywhere (between fidelities: interpolated). Metric, and agreement with the full model, are of the half of the
validation split that no profile was measured on. By chance: scores drawn at random, in place of those that the paper's
method measures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from eval.command import publish, run_quietly
from eval.glue_runs.accuracy import Accuracy, PlanAccuracy
from eval.glue_runs.circumstances import command_line, machine
from eval.glue_runs.equal_bytes import EqualBytes
from eval.glue_runs.held_out import held_out
from eval.markdown import bullets, table
from sti_hf.config import ALLOCATORS
from sti_hf.planning import ImportanceProfile, default_importance
from sti_hf.planning.effects import EffectsImportance
from sti_hf.planning.exhaustive import ExhaustiveImportance
from sti_hf.planning.importance_file import DEFAULT_ORDER, profile_names, read_profile
from sti_hf.profiling.tasks import GLUE, GLUE_TASKS, get_task
from sti_hf.shards.layout import FIDELITIES, FULL
from sti_hf.shards.store import ShardStore

CHANCE = "chance"
UNIFORM = "uniform"
REFERENCES = (2, 3, 4)
AS_FOUR_BITS = 1.5
"""Per cent of agreement by which effects at 2.5 bits may be short of 4 bits everywhere."""


@dataclass(frozen=True)
class Row:
    """One plan: what guided it (a seed where that was chance), its size, and what it is worth.

    `average` bits set the budget, in bytes; `mean_bits` and `bytes_read` are the plan's.
    """

    guide: str
    allocator: str | None
    seed: int | None
    average: float
    budget: int
    bytes_read: int
    mean_bits: float
    fidelity_counts: dict[int, int]
    accuracy: Accuracy


class Bench:
    """Plans for one store, and what they are worth."""

    def __init__(self, store: ShardStore, accuracy: PlanAccuracy, fidelities: Sequence[int] = ()) -> None:
        self.store, self.accuracy, self.fidelities = store, accuracy, fidelities

    def uniform(self, bits: int) -> Row:
        """The whole model at one fidelity."""
        equal = EqualBytes(self.store.layouts, bits)
        return self._row(UNIFORM, None, None, bits, equal, equal.submodel.uniform(bits))

    def guided(
        self, guide: str, importance: ImportanceProfile, allocator: str, average: float, seed: int | None = None
    ) -> Row:
        """The plan of an allocator that an importance profile guides."""
        equal = EqualBytes(self.store.layouts, average, self.fidelities)
        return self._row(guide, allocator, seed, average, equal, equal.plan(importance, allocator))

    def _row(
        self, guide: str, allocator: str | None, seed: int | None, average: float, equal: EqualBytes, bits: np.ndarray
    ) -> Row:
        values, counts = np.unique(bits, return_counts=True)
        return Row(
            guide=guide,
            allocator=allocator,
            seed=seed,
            average=average,
            budget=equal.budget,
            bytes_read=equal.bytes_read(bits),
            mean_bits=float(bits.mean()),
            fidelity_counts=dict(zip(values.tolist(), counts.tolist())),
            accuracy=self.accuracy.of(bits),
        )


def guides_of(store: ShardStore, names: Sequence[str]) -> dict[str, ImportanceProfile]:
    """Importance by what it is called in the table: the store's profiles of these names, and the default order.

    A profile that holds checked plans is there without them too, to tell what checking buys.
    """
    guides: dict[str, ImportanceProfile] = {}
    for name in names:
        profile, _ = read_profile(store, name)
        called = f"{getattr(profile, 'method', 'profile')} ({name})"
        guides[called] = profile
        if isinstance(profile, EffectsImportance) and profile.checked is not None:
            guides[f"{called}, plans not checked"] = EffectsImportance(profile.effects, None, profile.share)
    return guides | {DEFAULT_ORDER: default_importance(store.grid)}


def by_chance(store: ShardStore, seed: int) -> ExhaustiveImportance:
    """The paper's importance with scores that say nothing."""
    scores = np.random.default_rng(seed).random((store.grid.layers, store.grid.slices))
    return ExhaustiveImportance(scores, np.zeros_like(scores), store.fidelities[0], 0.0, 0.0)


def measure(bench: Bench, guides: dict[str, ImportanceProfile], options: argparse.Namespace) -> Iterator[Row]:
    """All plans: uniform ones, then average by average and allocator by allocator."""
    for bits in (*REFERENCES, FULL):
        yield bench.uniform(bits)
    for average in options.averages:
        for allocator in options.allocators:
            for guide, importance in guides.items():
                yield bench.guided(guide, importance, allocator, average)
            for seed in range(options.seeds):
                yield bench.guided(CHANCE, by_chance(bench.store, seed), allocator, average, seed)


def report(title: str, facts: dict[str, str], rows: Sequence[Row]) -> str:
    """Markdown: how it ran, the plans, and the claim."""
    return "\n\n".join(
        [
            f"# {title}",
            bullets(facts),
            "Metric in points, agreement with the full model in per cent, means with the range in brackets. "
            "Distortion: the mean squared change of the logits from the full model's, a sharper measure.",
            table(
                (
                    "bits, average",
                    "allocator",
                    "guided by",
                    "MB read",
                    "bits, mean",
                    "metric",
                    "agreement",
                    "distortion",
                    "loss",
                ),
                map(_cells, _groups(rows)),
            ),
            *_claim(rows),
        ]
    )


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in their seed only, together."""
    groups: dict[tuple[str, str | None, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.guide, row.allocator, row.average), []).append(row)
    return list(groups.values())


def _cells(group: Sequence[Row]) -> list[str]:
    first = group[0]
    name = first.guide if len(group) == 1 else f"{first.guide}, {len(group)} seeds"
    agreements = [row.accuracy.agreement for row in group if row.accuracy.agreement is not None]
    return [
        f"{first.average:g}",
        first.allocator or "–",
        name,
        _range([row.bytes_read / 1e6 for row in group], 2),
        _range([row.mean_bits for row in group], 2),
        _range([row.accuracy.metric for row in group], 1),
        _range(agreements, 1) if agreements else "–",
        _range([row.accuracy.distortion for row in group], 3),
        _range([row.accuracy.loss for row in group], 3),
    ]


def _range(values: Sequence[float], decimals: int) -> str:
    mean = f"{np.mean(values):.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{decimals}f}–{max(values):.{decimals}f})"


def _claim(rows: Sequence[Row]) -> list[str]:
    """Whether effects at 2.5 bits agree with the full model as 4 bits everywhere do."""
    four = next(row.accuracy.agreement for row in rows if row.guide == UNIFORM and row.average == 4)
    effects = [row for row in rows if row.guide.startswith(EffectsImportance.method) and row.average == 2.5]
    if four is None or not effects:
        return []
    claim = f"effects at 2.5 bits agrees with the full model as 4 bits everywhere, within {AS_FOUR_BITS} per cent"
    cells = []
    for row in effects:
        assert row.accuracy.agreement is not None
        holds = "true" if row.accuracy.agreement >= four - AS_FOUR_BITS else "**false**"
        cells.append(
            [claim, f"{row.guide}, {row.allocator}", holds, f"{row.accuracy.agreement:.1f} against {four:.1f}"]
        )
    return [table(("claim", "of", "holds", "figures"), cells)]


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="a store with importance profiles")
    parser.add_argument("--task", required=True, choices=GLUE_TASKS)
    parser.add_argument("--dataset", metavar="ID_OR_DIR", help=f"default: {GLUE}")
    parser.add_argument("--samples", type=int, metavar="N", help="N sentences of the half only")
    parser.add_argument("--profiles", nargs="*", metavar="NAME", help="default: all that the store has for the task")
    parser.add_argument("--averages", nargs="+", type=float, default=[2.25, 2.5, 3], metavar="BITS")
    parser.add_argument("--allocators", nargs="+", choices=ALLOCATORS, default=ALLOCATORS)
    parser.add_argument("--fidelities", nargs="+", type=int, choices=FIDELITIES, default=(), help="default: all")
    parser.add_argument("--seeds", type=int, default=5, help="of chance (default 5)")
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.set_defaults(command=command_line("eval.bench_importance", arguments))
    return parser, parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Measures, prints and writes. Raises `ValueError` or `OSError` with one sentence for what will not do."""
    store, task = ShardStore.open(options.store), get_task(options.task)
    names = profile_names(store) if options.profiles is None else options.profiles
    facts = {name: read_profile(store, name)[1] for name in names}
    if options.profiles is None:
        facts = {name: of for name, of in facts.items() if of["task"] == task.name}
    part, seed = held_out(facts, task.split)
    accuracy = PlanAccuracy(store, task, options.dataset, part=part, seed=seed, samples=options.samples)
    bench = Bench(store, accuracy, options.fidelities)
    rows = []
    for row in measure(bench, guides_of(store, list(facts)), options):
        rows.append(row)
        print(f"{row.average:g} bits, {row.allocator}, {row.guide}: {row.accuracy}", file=sys.stderr, flush=True)
    head = {
        "store": f"{store.path.name}, quantizer {store.index.quantizer}",
        "metric": f"{task.leading} on {len(accuracy.evaluation.examples)} sentences, part {part!r} of split "
        f"{task.split} of {Path(options.dataset or task.dataset).name}",
        "fidelities": ", ".join(map(str, options.fidelities or store.fidelities)),
        "machine": machine(),
        "command": f"`{options.command}`",
    }
    text = report(f"What importance buys: {store.path.name} on {task.name}", head, rows)
    publish(text, options.markdown)
    if options.json:
        profiles = {name: {key: of[key] for key in of if key != "submodels"} for name, of in facts.items()}
        content = {"facts": head, "profiles": profiles, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1))


def main(arguments: Sequence[str] | None = None) -> None:
    parser, options = parse(arguments)
    run_quietly(parser, options, run)


if __name__ == "__main__":
    main()

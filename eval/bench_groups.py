"""Whether groups of a layer should have fidelities of their own: plans of equal bytes that raise whole layers, or
kinds of matrices, by a bit.

    python -m eval.bench_groups --store STORE --task sst2 --dataset FOLDER [--measure 128] [--markdown FILE]

Each plan is at one fidelity everywhere, and raises what it raises first, from the first layer on, while the bytes last
that `--averages` bits everywhere would take. Metric, agreement and divergence (KL, from the full model's classes) are
of one half of the split. `--measure` orders layers, and kinds of matrices, by what raising each alone takes from the
divergence on so many sentences of the other half, a byte: what could be won by knowing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from eval.command import publish, run_quietly
from eval.glue_runs.circumstances import command_line, machine
from eval.groups.mixed import MixedModel, Worth
from eval.groups.orders import LAYERS, MatrixBytes, Unit, orders, raised, units_of
from eval.markdown import bullets, table
from sti_hf.profiling.tasks import GLUE, GLUE_TASKS, get_task
from sti_hf.shards.layout import PLANES
from sti_hf.shards.store import ShardStore

AVERAGES = [Fraction(7, 3), Fraction(5, 2), Fraction(8, 3), Fraction(7, 2)]
"""Of a layer as BERT's a third is attention and two thirds are FFN: with these, each fits whole."""


@dataclass(frozen=True)
class Row:
    """A plan: what it raises first, above which average, its bytes, and what it is worth."""

    order: str
    average: Fraction
    bytes: int
    worth: Worth


def measured_orders(model: MixedModel, sizes: MatrixBytes, bits: int) -> dict[str, list[Unit]]:
    """Layers, and kinds of matrices in all layers, the first that whose raise above `bits` is worth most a byte."""
    grid = sizes.grid
    before, base = model.worth(sizes.uniform(bits)).divergences.mean(), sizes.of(sizes.uniform(bits))

    def worth_a_byte(units: Sequence[Unit]) -> float:
        matrix_bits = sizes.uniform(bits)
        for layer, names in units:
            matrix_bits[layer, [grid.matrices.index(name) for name in names]] += 1
        fall = before - model.worth(matrix_bits).divergences.mean()
        return float(fall) / (sizes.of(matrix_bits) - base)

    layers = [[unit] for unit in units_of(grid, [grid.matrices])]
    kinds = [units_of(grid, [(name,)]) for name in grid.matrices]
    ordered = {}
    for name, choices in ((f"{LAYERS}, measured", layers), ("kinds, measured", kinds)):
        ranked = sorted(choices, key=worth_a_byte, reverse=True)
        ordered[name] = [unit for units in ranked for unit in units]
    return ordered


def measure(
    model: MixedModel, other_half: MixedModel | None, sizes: MatrixBytes, averages: Sequence[Fraction]
) -> Iterator[Row]:
    """All plans, average by average."""
    for bits in sorted({int(average) + more for average in averages for more in (0, 1)}):
        yield Row("everywhere", Fraction(bits), sizes.of(sizes.uniform(bits)), model.worth(sizes.uniform(bits)))
    measured = {
        bits: measured_orders(other_half, sizes, bits) if other_half else {}
        for bits in sorted(set(map(int, averages)))
    }
    for average in averages:
        for name, units in (orders(sizes.grid) | measured[int(average)]).items():
            bits = raised(sizes, units, average)
            yield Row(_name(name, units), average, sizes.of(bits), model.worth(bits))


def _name(name: str, units: Sequence[Unit]) -> str:
    """What was measured says what it found."""
    if not name.endswith("measured"):
        return name
    found = dict.fromkeys(str(layer) if name.startswith(LAYERS) else names[0] for layer, names in units)
    return f"{name}: {' '.join(found)}"


def report(rows: Sequence[Row]) -> str:
    """The table. Differences are from whole layers at the same average, sentence by sentence."""
    against = {row.average: row.worth.divergences for row in rows if row.order == LAYERS}
    head = ("bits, average", "raised first", "MB", "metric", "agreement", "KL, 1e-3 nats", "less than whole layers'")
    return table(head, (_cells(row, against.get(row.average)) for row in rows))


def _cells(row: Row, whole_layers: Tensor | None) -> list[str]:
    worth = row.worth
    cells = [f"{float(row.average):.2f}", row.order, f"{row.bytes / 1e6:.2f}", f"{worth.metric:.1f}"]
    cells += [f"{worth.agreement:.1f}", f"{1e3 * float(worth.divergences.mean()):.1f}"]
    if whole_layers is None or row.order == LAYERS:
        return [*cells, ""]
    less = whole_layers - worth.divergences
    error = float(less.std() / len(less) ** 0.5)
    return [*cells, f"{1e3 * float(less.mean()):.1f} ± {1e3 * error:.1f}".replace("-", "−")]


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="a store with full weights")
    parser.add_argument("--task", required=True, choices=GLUE_TASKS)
    parser.add_argument("--dataset", metavar="ID_OR_DIR", help=f"default: {GLUE}")
    parser.add_argument("--averages", nargs="+", type=Fraction, default=AVERAGES, metavar="BITS", help="such as 7/3")
    parser.add_argument("--samples", type=int, metavar="N", help="N sentences of the half only")
    parser.add_argument("--measure", type=int, metavar="N", help="measure on N sentences of the other half")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    parser.set_defaults(command=command_line("eval.bench_groups", arguments))
    return parser, parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Measures, prints and writes. Raises `ValueError` or `OSError` with one sentence for what will not do."""
    store, task = ShardStore.open(options.store), get_task(options.task)
    if any(not 2 <= average < PLANES for average in options.averages):
        raise ValueError(f"Averages are from 2 to below {PLANES} bits, not {' '.join(map(str, options.averages))}.")
    model = MixedModel(store, task, options.dataset, part="second", samples=options.samples)
    other_half = None
    if options.measure is not None:
        other_half = MixedModel(store, task, options.dataset, part="first", samples=options.measure)
    rows = []
    for row in measure(model, other_half, MatrixBytes(store), options.averages):
        rows.append(row)
        print(" | ".join(_cells(row, None)), file=sys.stderr, flush=True)
    facts = {
        "store": f"{store.path.name}, quantizer {store.index.quantizer}",
        "sentences": f"{len(model.evaluation.examples)} of the second half of {task.name}'s {task.split}",
        "machine": machine(),
        "command": f"`{options.command}`",
    }
    text = bullets(facts) + "\n\n" + report(rows)
    publish(text, options.markdown)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser, options = parse(arguments)
    run_quietly(parser, options, run)


if __name__ == "__main__":
    main()

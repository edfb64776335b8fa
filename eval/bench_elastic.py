"""What the submodels n x m of stores are worth on a task, in full and at low fidelities.

    python -m eval.bench_elastic --task sst2 --dataset ../shared/glue --models ordinary=CHECKPOINT elastic=DIR/store

A model is a store, or a checkpoint, which is sharded first. Its submodels have the first n layers and the first m
slices of each, and run as stock models in float32, in batches, with the weights that the runtime would decompress.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from eval.command import publish, run_quietly
from eval.glue_runs.circumstances import command_line, machine
from eval.markdown import bullets, table
from sti_hf import shard_checkpoint
from sti_hf.integrations.full_model import full_model
from sti_hf.integrations.tokenizer import load_tokenizer
from sti_hf.model.depth import kept_layers
from sti_hf.model.layer_runner import HiddenStates, LayerRunner
from sti_hf.profiling.evaluation import Evaluation
from sti_hf.profiling.examples import PARTS, Examples, load_examples
from sti_hf.profiling.metrics import load_metric
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.profiling.tasks import GLUE, GLUE_TASKS, Metric, Task, get_task
from sti_hf.shards.layout import FIDELITIES, FULL
from sti_hf.shards.quantizers import DEFAULT_QUANTIZER, QUANTIZERS
from sti_hf.shards.store import ShardStore, is_store


@dataclass(frozen=True)
class Row:
    """One submodel of one model at one fidelity: the task's metrics in points, the leading one first, and the loss."""

    model: str
    depth: int
    width: int
    bits: int
    metrics: dict[str, float]
    loss: float


class Bench:
    """A store's submodels on a task's examples.

    Raises `ValueError` or `OSError` with one sentence where the store has no full weights, no tokenizer, or another
    head than the task.
    """

    def __init__(self, name: str, store: ShardStore, task: Task, metric: Metric, examples: Examples) -> None:
        self.name, self.store = name, store
        model = full_model(store)
        self.evaluation = Evaluation.prepare(task, metric, examples, model, load_tokenizer(store))
        self._runner, self._weights = LayerRunner(model), PlanWeights(model, store)

    def rows(self, width: int, depths: Sequence[int], bits: int) -> Iterator[Row]:
        """The submodels of a width, all shards at one fidelity: each layer is run once for all depths."""
        grid = self.store.grid
        matrix = np.zeros((grid.layers, grid.slices), dtype=np.int64)
        matrix[:, :width] = bits
        self._weights.set(matrix)
        states = HiddenStates(self._runner, [batch.inputs for batch in self.evaluation.batches])
        for depth in sorted(depths):
            states.advance_to(max(kept_layers(grid.layers, depth)) + 1)
            score = self.evaluation.score(states.head)
            points = {key: 100 * value for key, value in score.metrics.items()}
            yield Row(self.name, depth, width, bits, points, score.loss)


def opened(source: str, quantizer: str, folder: Path) -> ShardStore:
    """The store that `source` is, or that its checkpoint becomes in `folder`."""
    return ShardStore.open(source) if is_store(source) else shard_checkpoint(source, folder, quantizer=quantizer)


def report(title: str, facts: dict[str, str], rows: Sequence[Row], leading: str) -> str:
    """Markdown: how it ran, and a table for each fidelity."""
    parts = [f"# {title}", bullets(facts)]
    for bits in dict.fromkeys(row.bits for row in rows):
        widths = sorted({row.width for row in rows})
        found = {(row.model, row.depth, row.width): row.metrics[leading] for row in rows if row.bits == bits}
        submodels = dict.fromkeys((depth, model) for model, depth, _ in found)
        lines = [
            [model, str(depth), *(f"{found[model, depth, width]:.1f}" for width in widths)]
            for depth, model in sorted(submodels, key=lambda one: -one[0])
        ]
        head = ("model", "n", *(f"m = {width}" for width in widths))
        parts += [f"## {'Full fidelity' if bits == FULL else f'{bits} bits'}", table(head, lines)]
    return "\n\n".join(parts)


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, type=_named, metavar="NAME=STORE_OR_CHECKPOINT")
    parser.add_argument("--task", required=True, choices=GLUE_TASKS)
    parser.add_argument("--dataset", metavar="ID_OR_DIR", help=f"default: {GLUE}")
    parser.add_argument("--depths", nargs="+", type=int, default=[3, 4, 5, 6], metavar="N", help="default: 3 4 5 6")
    parser.add_argument("--widths", nargs="+", type=int, default=[3, 6, 9, 12], metavar="M", help="default: 3 6 9 12")
    parser.add_argument("--fidelities", nargs="+", type=int, choices=FIDELITIES, default=[FULL, 3, 2])
    parser.add_argument("--quantizer", choices=QUANTIZERS, default=DEFAULT_QUANTIZER, help="of checkpoints' stores")
    parser.add_argument("--part", choices=PARTS, default="all", help="of the task's split (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the halves")
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.set_defaults(command=command_line("eval.bench_elastic", arguments))
    return parser, parser.parse_args(arguments)


def _named(text: str) -> tuple[str, str]:
    name, found, source = text.partition("=")
    if not (name and found and source):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=STORE_OR_CHECKPOINT")
    return name, source


def run(options: argparse.Namespace) -> None:
    """Measures, prints and writes. Raises `ValueError` or `OSError` with one sentence for what will not do."""
    task = get_task(options.task)
    metric = load_metric(task)
    examples = load_examples(task, options.dataset, part=options.part, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        stores = {name: opened(source, options.quantizer, Path(folder) / name) for name, source in options.models}
        for name, store in stores.items():
            _check(name, store, options)
        rows = []
        for name, store in stores.items():
            bench = Bench(name, store, task, metric, examples)
            for bits in options.fidelities:
                for width in options.widths:
                    rows += bench.rows(width, options.depths, bits)
                    print(f"{name}, m = {width}, {bits} bits: done", file=sys.stderr, flush=True)
    facts = {
        "metric": f"{task.leading} on {len(examples)} sentences, part {options.part!r} of split {task.split} of "
        f"{Path(options.dataset or task.dataset).name}",
        "models": ", ".join(f"{name} (quantizer {store.index.quantizer})" for name, store in stores.items()),
        "machine": machine(),
        "command": f"`{options.command}`",
    }
    text = report(f"Submodels on {task.name}", facts, rows, task.leading)
    publish(text, options.markdown)
    if options.json:
        options.json.write_text(json.dumps({"facts": facts, "rows": [asdict(row) for row in rows]}, indent=1))


def _check(name: str, store: ShardStore, options: argparse.Namespace) -> None:
    for what, values, most in (
        ("layers", options.depths, store.grid.layers),
        ("slices", options.widths, store.grid.slices),
    ):
        if not all(1 <= value <= most for value in values):
            raise ValueError(f"{name} has {most} {what}, so submodels cannot have {max(values)}; name others.")
    if not set(options.widths) <= set(store.grid.widths):
        raise ValueError(f"Submodels of {name} have all {store.grid.slices} slices; name that width.")


def main(arguments: Sequence[str] | None = None) -> None:
    parser, options = parse(arguments)
    run_quietly(parser, options, run)


if __name__ == "__main__":
    main()

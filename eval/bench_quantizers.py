"""What every quantizer's fidelities are worth on tasks, and what they take.

python -m eval.bench_quantizers --models MODELS --dataset ../shared/glue [--quantizers gobo lloyd calibrated]

MODELS is a folder of fine-tuned checkpoints, as the script beside ../shared/models makes them. The calibrated
quantizer gets 512 texts of the training split, without labels; figures are of the whole validation split.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from eval.markdown import table
from sti_hf import shard_checkpoint
from sti_hf.integrations.calibration_text import CalibrationText
from sti_hf.profiling.evaluation import Evaluation
from sti_hf.profiling.examples import load_examples
from sti_hf.profiling.metrics import load_metric, score
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.profiling.tasks import GLUE, get_task
from sti_hf.shards.layout import FULL
from sti_hf.shards.quantizers import CALIBRATED, QUANTIZER_NAMES
from sti_hf.shards.store import ShardStore

CASES = {
    "minilm-l6-sst2": "sst2",
    "minilm-l6-mrpc": "mrpc",
    "minilm-l6-qnli": "qnli",
    "mpnet-base-sst2": "sst2",
}
FIDELITIES = (2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Outputs:
    """What a model says of the validation split: logits `[n, classes]`, and the hidden states of the first batches
    after each layer.
    """

    logits: Tensor
    states: list[Tensor]


@dataclass(frozen=True)
class Row:
    """One model, quantizer and fidelity. Metric, agreement in per cent; bytes for each weight, all included."""

    model: str
    quantizer: str
    bits: int
    metric: float
    metrics: dict[str, float]
    loss: float
    agreement: float
    logit_change_mean: float
    logit_change_spread: float
    layer_errors: list[float]
    bytes_per_weight: float
    seconds: float


class Case:
    """A checkpoint on its task."""

    def __init__(self, folder: Path, task: str, dataset: str, stores: Path) -> None:
        self.folder, self.dataset, self.stores = folder, dataset, stores
        self.task = get_task(task)
        self.metric = load_metric(self.task)
        self.model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        examples = load_examples(self.task, dataset)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.evaluation = Evaluation.prepare(self.task, self.metric, examples, self.model, tokenizer)
        self.full = self.outputs()

    @torch.no_grad()
    def outputs(self) -> Outputs:
        """What the model says with the weights that it has now."""
        batches = self.evaluation.batches
        logits = torch.empty(len(self.evaluation.examples), self.task.num_labels)
        states = []
        for index, batch in enumerate(batches):
            seen = index in (0, len(batches) // 2)
            output = self.model(**batch.inputs, output_hidden_states=seen)
            logits[batch.places] = output.logits
            if seen:
                mask = batch.inputs["attention_mask"] == 1
                states.append([state[mask] for state in output.hidden_states[1:]])
        return Outputs(logits, [torch.cat(layer) for layer in zip(*states)])

    def rows(self, quantizer: str, bits: Sequence[int]) -> Iterator[Row]:
        """The figures of a quantizer, fidelity after fidelity."""
        begun = time.perf_counter()
        store = self._shard(quantizer)
        seconds = time.perf_counter() - begun
        weights = PlanWeights(self.model, store)
        for fidelity in bits:
            weights.set(np.full((store.grid.layers, store.grid.slices), fidelity))
            yield self._row(quantizer, fidelity, store.shard_bytes(fidelity) / store.grid.weights, seconds)
        weights.set(np.full((store.grid.layers, store.grid.slices), FULL))

    def full_row(self) -> Row:
        """The figures of the checkpoint itself."""
        return self._row("none", 32, 4.0, 0.0)

    def _shard(self, quantizer: str) -> ShardStore:
        text = CalibrationText(self.dataset, config=self.task.dataset_config, columns=self.task.columns)
        return shard_checkpoint(
            self.folder,
            self.stores / f"{self.folder.name}-{quantizer}",
            quantizer=quantizer,
            calibration=text if quantizer == CALIBRATED else None,
        )

    def _row(self, quantizer: str, bits: int, bytes_per_weight: float, seconds: float) -> Row:
        now, full = self.outputs(), self.full
        scored = score(self.task, self.metric, now.logits, self.evaluation.examples.labels, self.evaluation.order)
        change = F.log_softmax(now.logits, -1) - F.log_softmax(full.logits, -1)
        margin = change[:, -1] - change[:, 0]
        return Row(
            model=self.folder.name,
            quantizer=quantizer,
            bits=bits,
            metric=100 * scored.value,
            metrics={name: 100 * value for name, value in scored.metrics.items()},
            loss=scored.loss,
            agreement=100 * float((now.logits.argmax(1) == full.logits.argmax(1)).float().mean()),
            logit_change_mean=float(margin.mean()),
            logit_change_spread=float(margin.std()),
            layer_errors=[float((a - b).norm() / b.norm()) for a, b in zip(now.states, full.states)],
            bytes_per_weight=bytes_per_weight,
            seconds=seconds,
        )


HEAD = ("model", "quantizer", "bits", "metric", "loss", "agreement", "margin", "layers", "bits a weight", "s")


def figures(rows: Iterable[Row]) -> str:
    """Markdown: all figures."""
    return table(HEAD, map(_cells, rows))


def _cells(row: Row) -> list[str]:
    return [
        row.model,
        row.quantizer,
        str(row.bits),
        f"{row.metric:.1f}",
        f"{row.loss:.3f}",
        f"{row.agreement:.1f}",
        f"{row.logit_change_mean:+.2f} ± {row.logit_change_spread:.2f}",
        f"{np.mean(row.layer_errors):.3f}, last {row.layer_errors[-1]:.3f}",
        f"{8 * row.bytes_per_weight:.2f}",
        f"{row.seconds:.0f}",
    ]


def averages(rows: Sequence[Row]) -> str:
    """Markdown: over the models, what each quantizer loses of the metric, at most and on average, and agreement."""
    full = {row.model: row.metric for row in rows if row.bits == FULL}
    lines = []
    for quantizer in dict.fromkeys(row.quantizer for row in rows if row.bits != FULL):
        for bits in FIDELITIES:
            of = [row for row in rows if row.quantizer == quantizer and row.bits == bits]
            if of:
                lost = [full[row.model] - row.metric for row in of]
                agreement = np.mean([row.agreement for row in of])
                lines.append([quantizer, str(bits), f"{np.mean(lost):.2f}", f"{max(lost):.2f}", f"{agreement:.1f}"])
    return table(("quantizer", "bits", "points lost", "at most", "agreement"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=Path, required=True, help=f"a folder with {', '.join(CASES)}, or some of them"
    )
    parser.add_argument("--dataset", default=GLUE, help=f"a folder, or an id on the Hub; default: {GLUE}")
    parser.add_argument("--quantizers", nargs="+", choices=QUANTIZER_NAMES, default=("gobo", "lloyd", CALIBRATED))
    parser.add_argument("--fidelities", nargs="+", type=int, choices=FIDELITIES, default=FIDELITIES)
    parser.add_argument("--only", nargs="+", choices=CASES, default=tuple(CASES), help="of the models")
    parser.add_argument("--stores", type=Path, help="keep the stores in this folder; default: none is kept")
    parser.add_argument("--json", type=Path, help="write all figures there")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    for name in arguments.only:
        if not (arguments.models / name).is_dir():
            parser.error(f"{arguments.models} has no {name}; make it, or name others with --only")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments, arguments.stores or Path(folder))
    print(figures(rows), averages(rows), sep="\n\n")


def measure(arguments: argparse.Namespace, stores: Path) -> list[Row]:
    """All rows; those of a quantizer are printed, and written to the JSON file, as soon as they are there."""
    rows: list[Row] = []
    for name in arguments.only:
        case = Case(arguments.models / name, CASES[name], arguments.dataset, stores)
        rows.append(case.full_row())
        for quantizer in arguments.quantizers:
            rows += case.rows(quantizer, arguments.fidelities)
            print(figures(rows[-len(arguments.fidelities) :]), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return rows


if __name__ == "__main__":
    main()

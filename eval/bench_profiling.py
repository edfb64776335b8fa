"""Layer executions and time of exhaustive importance profiling, against one whole forward for each shard.

    python -m eval.bench_profiling --model CHECKPOINT [--task sst2 --dataset DIR] [--samples 16]

The naive loop is run too: whole forwards, batches in the order of the data. A sentence in a layer is one execution; a
padded token in a layer one token execution. Without --task sentences are made of random words, 4 to 40 tokens long.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from sti_hf import shard_checkpoint
from sti_hf.integrations.full_model import full_model
from sti_hf.model.layer_runner import LayerExecutions, LayerRunner
from sti_hf.profiling.evaluation import Evaluation
from sti_hf.profiling.examples import Examples, load_examples
from sti_hf.profiling.exhaustive import raised_scores
from sti_hf.profiling.metrics import Score, load_metric
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.profiling.tasks import Task, get_task

Shard = tuple[int, int]


@dataclass(frozen=True)
class Measured:
    """What one way of profiling took, and what it found."""

    executions: LayerExecutions
    seconds: float
    scores: dict[Shard, Score]


def accuracy(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Share of right predictions."""
    return {"accuracy": float((predictions == references).mean())}


def random_examples(tokenizer: Any, count: int) -> Examples:
    """Sentences of random words with random labels."""
    random = np.random.default_rng(0)
    words = [tokenizer.decode([index]) for index in random.integers(len(tokenizer) // 3, len(tokenizer), 500)]
    texts = tuple((" ".join(random.choice(words, random.integers(2, 39))),) for _ in range(count))
    return Examples(texts, random.integers(0, 2, count), np.arange(count))


def naive_scores(model: Any, weights: PlanWeights, evaluation: Evaluation, base: int) -> Measured:
    """One whole forward for each shard."""
    runner, grid = LayerRunner(model), weights.store.grid
    scores: dict[Shard, Score] = {}
    begun = time.perf_counter()
    for shard in np.ndindex(grid.layers, grid.slices):
        bits = np.full((grid.layers, grid.slices), base)
        bits[shard] = weights.store.fidelities[-1]
        weights.set(bits)
        scores[shard] = evaluation.score(lambda index: runner.run(evaluation.batches[index].inputs))
    return Measured(runner.executions, time.perf_counter() - begun, scores)


def our_scores(model: Any, weights: PlanWeights, evaluation: Evaluation, base: int) -> Measured:
    """As `sti profile-importance --method exhaustive`."""
    runner, grid = LayerRunner(model), weights.store.grid
    begun = time.perf_counter()
    scores = dict(raised_scores(runner, weights, evaluation, base, list(np.ndindex(grid.layers, grid.slices))))
    return Measured(runner.executions, time.perf_counter() - begun, scores)


def in_order(evaluation: Evaluation, prepare: Callable[[Examples], Evaluation], batch_size: int) -> Evaluation:
    """The same examples in batches as they come."""
    examples, batches = evaluation.examples, []
    for first in range(0, len(examples), batch_size):
        some = slice(first, first + batch_size)
        part = replace(examples, texts=examples.texts[some], labels=examples.labels[some], rows=examples.rows[some])
        (batch,) = prepare(part).batches
        batches.append(replace(batch, places=batch.places + first))
    return replace(evaluation, batches=batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint of a sequence classifier")
    parser.add_argument("--task", help="of GLUE; default: random words")
    parser.add_argument("--dataset", help="id or folder; default: the task's")
    parser.add_argument("--samples", type=int, default=16, help="sentences; default: 16")
    parser.add_argument("--batch-size", type=int, default=8, help="default: 8")
    parser.add_argument("--base-fidelity", type=int, default=2, help="bits of the other shards; default: 2")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    if arguments.task:
        task = get_task(arguments.task)
        metric = load_metric(task)
        examples = load_examples(task, arguments.dataset, samples=arguments.samples)
    else:
        task, metric = Task("random", ("text",), accuracy), accuracy
        examples = random_examples(tokenizer, arguments.samples)
    with tempfile.TemporaryDirectory() as folder:
        store = shard_checkpoint(arguments.model, Path(folder, "store"), quantizer="gobo")
        model = full_model(store)
        weights = PlanWeights(model, store)

        def prepare(some: Examples) -> Evaluation:
            return Evaluation.prepare(task, metric, some, model, tokenizer, batch_size=arguments.batch_size)

        evaluation = prepare(examples)
        ours = our_scores(model, weights, evaluation, arguments.base_fidelity)
        naive_evaluation = in_order(evaluation, prepare, arguments.batch_size)
        naive = naive_scores(model, weights, naive_evaluation, arguments.base_fidelity)
    apart = max(abs(ours.scores[shard].loss - naive.scores[shard].loss) for shard in naive.scores)
    report(arguments.json, store.grid.layers, store.grid.slices, len(examples), naive, ours, apart)


def report(
    as_json: bool, layers: int, slices: int, sentences: int, naive: Measured, ours: Measured, apart: float
) -> None:
    """Prints both ways and their ratios."""
    ways = {"naive": naive, "ours": ours}
    if as_json:
        content = {name: {**asdict(way.executions), "seconds": way.seconds} for name, way in ways.items()}
        print(json.dumps({"layers": layers, "slices": slices, "sentences": sentences, **content}, indent=2))
        return
    print(f"{layers} x {slices} shards, {sentences} sentences, {torch.get_num_threads()} threads")
    for name, way in ways.items():
        executions, tokens = way.executions.sentences, way.executions.tokens
        print(f"{name:>5}: {executions:>9,} layer executions ({tokens:>11,} token executions), {way.seconds:7.1f} s")
    print(
        f"ratio: {naive.executions.sentences / ours.executions.sentences:9.2f} {'':18}"
        f"{naive.executions.tokens / ours.executions.tokens:8.2f} {naive.seconds / ours.seconds:19.2f}"
    )
    print(f"losses differ by at most {apart:.1e} (padding is summed in another order)")


if __name__ == "__main__":
    main()

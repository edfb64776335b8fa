"""What a plan's fidelities are worth on a task."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sti_hf.integrations.full_model import full_model
from sti_hf.integrations.tokenizer import load_tokenizer
from sti_hf.model.layer_runner import HiddenStates, LayerRunner
from sti_hf.profiling.evaluation import Evaluation
from sti_hf.profiling.examples import Batch, load_examples, tokenize
from sti_hf.profiling.metrics import load_metric, score
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.profiling.tasks import Task
from sti_hf.shards.layout import FULL
from sti_hf.shards.store import ShardStore

SAME_VALUE = 0.01
"""Two answers to a regression that differ by less are the same."""


@dataclass(frozen=True)
class Accuracy:
    """How well a model does. `metric` is the task's leading one, `metrics` has all of them, in points (per cent);
    `agreement` is the per cent of sentences that it answers as the full model does, None for a regression;
    `distortion` the mean squared change of its logits from the full model's, what adds to all of them left out."""

    metric: float
    metrics: dict[str, float]
    loss: float
    agreement: float | None
    distortion: float


class PlanAccuracy:
    """Runs a store's model in float32 with the weights of any plan over a task's sentences, in batches by length.

    Each bits matrix is run once; its logits are kept.

    Args:
        store: with full weights and a tokenizer.
        task: that the model was fine-tuned for.
        dataset: id on the Hub or folder; None: the task's own.
        part, seed: of the task's split, as `load_examples` takes them.
        samples: at most so many sentences; None: all.

    Raises `ValueError` or `OSError` with one sentence where one of these will not do.
    """

    def __init__(
        self,
        store: ShardStore,
        task: Task,
        dataset: str | None = None,
        *,
        part: str = "all",
        seed: int = 0,
        samples: int | None = None,
    ) -> None:
        self._tokenizer = load_tokenizer(store)
        examples = load_examples(task, dataset, part=part, samples=samples, seed=seed)
        metric = load_metric(task)
        model = full_model(store)
        self._model = model
        self.evaluation = Evaluation.prepare(task, metric, examples, model, self._tokenizer)
        self._runner = LayerRunner(model)
        self._weights = PlanWeights(model, store)
        self._logits: dict[bytes, Tensor] = {}
        grid = store.grid
        self._full_bits = np.full((grid.layers, grid.slices), FULL)

    def logits(self, bits: np.ndarray) -> Tensor:
        """float32 `[sentences, num_labels]` of the model with fidelities `bits` int `[N, M]`.

        Layers that have 0 bits throughout do not run; only the last ones may be such.
        """
        key = np.ascontiguousarray(bits, dtype=np.int64).tobytes()
        if key not in self._logits:
            self._logits[key] = self._run(bits)
        return self._logits[key]

    def of(self, bits: np.ndarray) -> Accuracy:
        """The accuracy with fidelities `bits` `[N, M]`."""
        logits, full, evaluation = self.logits(bits), self.logits(self._full_bits), self.evaluation
        task = evaluation.task
        scored = score(task, evaluation.metric, logits, evaluation.examples.labels, evaluation.order)
        agreement = None if task.is_regression else 100 * float((logits.argmax(1) == full.argmax(1)).float().mean())
        metrics = {key: 100 * value for key, value in scored.metrics.items()}
        change = logits - full
        if not task.is_regression:
            change = change - change.mean(1, keepdim=True)
        distortion = float(change.square().sum(1).mean())
        return Accuracy(100 * scored.value, metrics, scored.loss, agreement, distortion)

    def singles(self, count: int) -> list[Batch]:
        """The first `count` sentences, each a batch of its own without padding; `places` are those of `logits`."""
        all_of_them = self.evaluation.examples
        some = replace(
            all_of_them, **{name: getattr(all_of_them, name)[:count] for name in ("texts", "labels", "rows")}
        )
        return tokenize(some, self._tokenizer, batch_size=1, model=self._model)

    def same(self, one: Tensor, other: Tensor) -> Tensor:
        """bool `[n]`: which of the answers `[n, num_labels]` of two models say the same."""
        if self.evaluation.task.is_regression:
            return (one - other).abs().flatten() < SAME_VALUE
        return one.argmax(1) == other.argmax(1)

    @torch.no_grad()
    def _run(self, bits: np.ndarray) -> Tensor:
        self._weights.set(bits)
        depth = int((bits > 0).any(axis=1).sum())
        if (bits[depth:] > 0).any():
            raise ValueError("A submodel keeps the first layers.")
        logits = torch.empty(len(self.evaluation.examples), self.evaluation.task.num_labels)
        for batch in self.evaluation.batches:
            logits[batch.places] = self._batch_logits(batch, depth, len(bits))
        return logits

    def _batch_logits(self, batch: Batch, depth: int, layers: int) -> Tensor:
        if depth == layers:
            return self._runner.run(batch.inputs)
        states = HiddenStates(self._runner, [batch.inputs])
        states.advance_to(depth)
        return states.head(0)

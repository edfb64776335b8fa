"""A stock model whose matrices have fidelities of their own, and what it is worth on a task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sti_hf.integrations.full_model import full_model
from sti_hf.integrations.tokenizer import load_tokenizer
from sti_hf.profiling.evaluation import Evaluation
from sti_hf.profiling.examples import load_examples
from sti_hf.profiling.metrics import load_metric, score
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.profiling.tasks import Task
from sti_hf.shards.layout import FULL
from sti_hf.shards.store import ShardStore


@dataclass(frozen=True, eq=False)
class Worth:
    """`metric` in points, `agreement` with the full model in per cent, `divergences` float32 `[sentences]`: from the
    full model's classes to these, in nats."""

    metric: float
    agreement: float
    divergences: Tensor


class MixedModel:
    """Runs a store's model with any matrix bits, int `[N, matrices]`, over part of a classification's split.

    Raises `ValueError` or `OSError` with one sentence where store, task or dataset will not do.
    """

    def __init__(
        self, store: ShardStore, task: Task, dataset: str | None, *, part: str, samples: int | None = None
    ) -> None:
        if task.is_regression:
            raise ValueError(f"Task {task.name} is a regression; choose one with classes.")
        self._model = full_model(store)
        examples = load_examples(task, dataset, part=part, samples=samples)
        self.evaluation = Evaluation.prepare(task, load_metric(task), examples, self._model, load_tokenizer(store))
        self._weights = PlanWeights(self._model, store)
        self._names = store.grid.matrices
        self._bits = np.full((store.grid.layers, len(self._names)), -1)
        self._full = self._logits(np.full_like(self._bits, FULL))

    def worth(self, bits: np.ndarray) -> Worth:
        """What the model is worth with these matrix bits."""
        logits, evaluation = self._logits(bits), self.evaluation
        scored = score(evaluation.task, evaluation.metric, logits, evaluation.examples.labels, evaluation.order)
        agreement = (logits.argmax(1) == self._full.argmax(1)).float().mean()
        divergences = F.kl_div(
            logits.log_softmax(1), self._full.log_softmax(1), log_target=True, reduction="none"
        ).sum(1)
        return Worth(100 * scored.value, 100 * float(agreement), divergences)

    @torch.no_grad()
    def _logits(self, bits: np.ndarray) -> Tensor:
        self._set(bits)
        logits = torch.empty(len(self.evaluation.examples), self.evaluation.task.num_labels)
        for batch in self.evaluation.batches:
            logits[batch.places] = self._model(**batch.inputs).logits
        return logits

    def _set(self, bits: np.ndarray) -> None:
        """Only layers that change are touched."""
        changed = np.flatnonzero((bits != self._bits).any(axis=1))
        by_fidelity = {
            (layer, fidelity): self._weights.weights(layer, self._weights.shards(layer, fidelity))
            for layer in changed.tolist()
            for fidelity in np.unique(bits[layer]).tolist()
        }
        for layer, matrix, linear in self._weights.linears():
            if layer in changed:
                fidelity = int(bits[layer, self._names.index(matrix.name)])
                linear.weight.copy_(by_fidelity[layer, fidelity][matrix.name])
        self._bits = bits.copy()

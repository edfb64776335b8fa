"""How well submodels do on a task while they are trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from eval.elastic.submodels import Submodels
from sti_hf.profiling.evaluation import Evaluation

Scores = dict[tuple[int, int], float]
"""The task's leading metric by submodel (n, m)."""


@torch.no_grad()
def submodel_scores(
    submodels: Submodels,
    evaluation: Evaluation,
    widths: Sequence[int],
    depths: Sequence[int],
    bits: np.ndarray | None = None,
) -> Scores:
    """The scores of all `depths` × `widths`, with fidelities `bits` int `[N, M]` as `Submodels.use` takes them."""
    model = submodels.model
    training = model.training
    model.eval()
    scores: Scores = {}
    try:
        for width in widths:
            logits: dict[int, list[Tensor]] = {depth: [] for depth in depths}
            for batch in evaluation.batches:
                inputs = {name: values.to(model.device) for name, values in batch.inputs.items()}
                for depth, values in submodels.run(inputs, width, depths, bits).logits.items():
                    logits[depth].append(values.float().cpu())
            for depth in depths:
                scores[depth, width] = evaluation.score(logits[depth].__getitem__).value
    finally:
        model.train(training)
    return scores

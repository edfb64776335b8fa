"""Trains the submodels of a model to do what their teacher does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from eval.elastic.arguments import ElasticTrainingArguments
from eval.elastic.distillation import logit_loss, state_loss
from eval.elastic.sandwich import sandwich
from eval.elastic.scores import submodel_scores
from eval.elastic.submodels import Outputs, Submodels
from sti_hf.profiling.evaluation import Evaluation


class ElasticTrainer(Trainer):
    """A `Trainer` whose loss is that of several submodels, which learn from a fixed teacher (DynaBERT, section 2.2).

    Every step runs a `sandwich` of widths, each with all depths, and compares logits, hidden states and embeddings
    with the teacher's. `evaluate` scores all submodels; their mean is the metric `score`. The labels are not used in
    training. Which widths and fidelities a step draws depends on the seed and the step alone, so a run that is
    resumed goes on as if it had not been interrupted.

    Args:
        model: the student, a copy of the teacher whose slices stand in order of importance.
        args: of the phase.
        teacher: the fine-tuned model.
        evaluation: what submodels are scored on.
        widths, depths: that are trained, the full ones among them.
        **options: as `Trainer` takes them; the training data are inputs of the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: ElasticTrainingArguments,
        *,
        teacher: PreTrainedModel,
        evaluation: Evaluation,
        widths: Sequence[int],
        depths: Sequence[int],
        **options: Any,
    ) -> None:
        if args.n_gpu > 1:
            raise ValueError("Several accelerators need a process each: start this with `accelerate launch`.")
        self.submodels = Submodels(model)
        self.teacher = Submodels(teacher.requires_grad_(False).eval())
        self.evaluation, self.widths, self.depths = evaluation, widths, depths
        self.fidelities = tuple(args.fidelities or ())
        self.state_weight, self.sampled_widths = args.state_weight, args.sampled_widths
        _set_dropout(model, args.dropout)
        super().__init__(model, args, eval_dataset=evaluation.examples, **options)
        self.loss_is_scaled_for_ga = False
        teacher.to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean loss of the step's forwards."""
        grid = self.submodels.grid
        random = np.random.default_rng((self.args.seed, self.state.global_step))
        passes = sandwich(grid, self.widths, self.sampled_widths, self.fidelities, random)
        with self.accelerator.autocast():
            with torch.no_grad():
                taught = self.teacher.run(inputs, grid.slices, (grid.layers,))
            losses: list[Tensor] = []
            first: Outputs | None = None
            for one in passes:
                # What wraps the model for training in parallel gathers gradients once a step: it is called once.
                options = {"forward": model} if first is None else {"embeddings": first.states[0]}
                outputs = self.submodels.run(inputs, one.width, self.depths, one.bits, **options)
                losses.append(self._loss(outputs, taught, inputs["attention_mask"]))
                first = first or outputs
        loss = torch.stack(losses).mean()
        return (loss, {}) if return_outputs else loss

    def _loss(self, outputs: Outputs, taught: Outputs, mask: Tensor) -> Tensor:
        (of_teacher,) = taught.logits.values()
        of_logits = torch.stack([logit_loss(logits, of_teacher) for logits in outputs.logits.values()])
        return of_logits.mean() + self.state_weight * state_loss(outputs.states, taught.states, mask)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Scores all submodels in full and, where low fidelities are trained, the whole model at the lowest.

        Metrics are `score`, the mean, and one for each submodel, such as `score_3x6`, and `score_2bits`.
        """
        grid = self.submodels.grid
        scores = submodel_scores(self.submodels, self.evaluation, self.widths, self.depths)
        metrics = {f"score_{depth}x{width}": value for (depth, width), value in scores.items()}
        if self.fidelities:
            lowest = np.full((grid.layers, grid.slices), min(self.fidelities))
            whole = submodel_scores(self.submodels, self.evaluation, [grid.slices], [grid.layers], lowest)
            metrics[f"score_{min(self.fidelities)}bits"] = whole[grid.layers, grid.slices]
        metrics = {"score": float(np.mean(list(metrics.values()))), **metrics}
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named


def _set_dropout(model: nn.Module, share: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share

"""The folders that a run leaves one after the other: rewired, trained in width, trained in width and depth."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, EarlyStoppingCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from eval.elastic.arguments import ElasticTrainingArguments
from eval.elastic.data import encoded
from eval.elastic.importance import first_order_importance
from eval.elastic.rewire import rewire
from eval.elastic.task_loss import labelled_loss
from eval.elastic.trainer import ElasticTrainer
from sti_hf.integrations.store_planner import ELASTIC
from sti_hf.profiling.evaluation import Evaluation
from sti_hf.profiling.examples import Examples, tokenize
from sti_hf.shards.whole import whole_or_absent

PHASE_FACTS = "trainer_state.json"
STUDENT_ATTENTION = "eager"
"""A step of SST-2 on a CPU takes a quarter less than with "sdpa", whose backward pass is slow in bfloat16; with texts
of 50 tokens it takes as long."""


class Phases:
    """Makes the folders of a run, each whole or not at all; those that are there already stay.

    Args:
        folder: where they are made.
        source: the fine-tuned model.
        training: arguments of the phases; `output_dir` and `num_train_epochs` are each phase's own.
        evaluation: what submodels are scored on.
        examples: to train on.
        tokenizer: the model's.
        max_length: tokens to which texts are cut.
    """

    def __init__(
        self,
        folder: Path,
        source: str,
        training: ElasticTrainingArguments,
        evaluation: Evaluation,
        examples: Examples,
        tokenizer: Any,
        max_length: int,
    ) -> None:
        self.folder, self.source, self.training = folder, source, training
        self.evaluation, self.examples = evaluation, examples
        self.tokenizer, self.max_length = tokenizer, max_length
        self.state = PartialState()

    def rewired(self, examples: Examples) -> Path:
        """The fine-tuned model with its heads and neurons in order of importance, measured on these examples."""
        folder = self.folder / "rewired"
        if self.state.is_main_process and not folder.exists():
            model = load_classifier(self.source).to(self.training.device)
            batches = tokenize(examples, self.tokenizer, max_length=self.max_length, model=model)
            loss = labelled_loss(self.evaluation.task, examples, self.evaluation.order)
            rewire(model, first_order_importance(model, batches, loss))
            self._save(model, folder)
        self.state.wait_for_everyone()
        return folder

    def trained(self, name: str, start: Path, widths: Sequence[int], depths: Sequence[int], epochs: float) -> Path:
        """What becomes of the model in `start` when submodels `depths` × `widths` are trained."""
        folder, checkpoints = self.folder / name, self.folder / f"{name}-checkpoints"
        if folder.exists():
            return folder
        student = load_classifier(start, attn_implementation=STUDENT_ATTENTION)
        trainer = ElasticTrainer(
            student,
            replace(self.training, output_dir=str(checkpoints), num_train_epochs=epochs),
            teacher=load_classifier(self.source),
            evaluation=self.evaluation,
            widths=widths,
            depths=depths,
            train_dataset=encoded(self.examples, self.tokenizer, student, self.max_length),
            # No `processing_class`: given one, Trainer changes the model's configuration to agree with it.
            data_collator=DataCollatorWithPadding(self.tokenizer),
            callbacks=[EarlyStoppingCallback(self.training.patience)],
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
        if trainer.is_world_process_zero():
            setattr(student.config, ELASTIC, True)  # its parts keep its accuracy: the planner may run any of them
            self._save(student, folder, trainer)
            shutil.rmtree(checkpoints)
        self.state.wait_for_everyone()
        return folder

    def _save(self, model: Any, folder: Path, trainer: ElasticTrainer | None = None) -> None:
        with whole_or_absent(folder) as unfinished:
            model.save_pretrained(unfinished)
            self.tokenizer.save_pretrained(unfinished)
            if trainer is not None:
                trainer.state.save_to_json(str(unfinished / PHASE_FACTS))


def load_classifier(source: str | Path, **options: Any) -> Any:
    """The sequence classifier in a folder or on the Hub, in float32; `options` as `from_pretrained` takes them."""
    return AutoModelForSequenceClassification.from_pretrained(source, dtype="float32", **options)


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint of a phase that was written to its end; None where there is none."""
    whole = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{PHASE_FACTS}")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None

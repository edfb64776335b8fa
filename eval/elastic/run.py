"""From a fine-tuned model to an elastic one, and its store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import AutoConfig, AutoTokenizer

from eval.elastic.arguments import ElasticArguments, ElasticTrainingArguments
from eval.elastic.data import load_training, select
from eval.elastic.model_card import model_card
from eval.elastic.phases import PHASE_FACTS, Phases, load_classifier
from eval.elastic.scores import Scores, submodel_scores
from eval.elastic.submodels import Submodels
from sti_hf import ShardStore, shard_checkpoint
from sti_hf.integrations.calibration_text import CalibrationText
from sti_hf.model import get_architecture
from sti_hf.profiling.evaluation import Evaluation
from sti_hf.profiling.examples import load_examples
from sti_hf.profiling.metrics import load_metric
from sti_hf.profiling.tasks import get_task
from sti_hf.shards.quantizers import CALIBRATED
from sti_hf.shards.store import is_store
from sti_hf.shards.whole import whole_or_absent, write_whole

CARD = "README.md"
CHECKPOINT, STORE, WORK = "checkpoint", "store", "training"


class ElasticRun:
    """An elastic fine-tuning: what it needs is loaded and checked, nothing is trained yet.

    Raises `ValueError` or `OSError` with one sentence for what will not do.
    """

    def __init__(self, arguments: ElasticArguments, training: ElasticTrainingArguments) -> None:
        self.arguments, self.training = arguments, training
        self.output = Path(training.output_dir)
        self.state = PartialState()
        self._check_output()
        if is_store(arguments.model):
            raise ValueError(f"{arguments.model} is a store; give the fine-tuned checkpoint that it was made from.")
        config = AutoConfig.from_pretrained(arguments.model)
        self.grid = get_architecture(config).grid(config)
        self.task = get_task(arguments.task)
        self.task.check_head(config)
        self.widths, self.depths = arguments.widths_of(self.grid), arguments.depths_of(self.grid)
        self.metric = load_metric(self.task)
        self.tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        self.examples, held_out = load_training(
            self.task,
            arguments.dataset,
            samples=arguments.train_samples,
            held_out=arguments.held_out,
            seed=training.seed,
        )
        self.reported = load_examples(self.task, arguments.dataset)
        self.evaluation = self._evaluation(held_out)

    def make(self) -> ShardStore:
        """Trains, and makes the checkpoint and the store, each with a model card."""
        arguments = self.arguments
        phases = Phases(
            self.output / WORK,
            arguments.model,
            self.training,
            self.evaluation,
            self.examples,
            self.tokenizer,
            arguments.max_length,
        )
        rewired = phases.rewired(select(self.examples, range(min(arguments.importance_samples, len(self.examples)))))
        wide = phases.trained("width", rewired, self.widths, [self.grid.layers], arguments.width_epochs)
        deep = phases.trained("depth", wide, self.widths, self.depths, self.training.num_train_epochs)
        if self.state.is_main_process:
            self._finish([wide, deep])
        self.state.wait_for_everyone()
        return ShardStore.open(self.output / STORE)

    def _check_output(self) -> None:
        if is_store(self.output / STORE):
            raise ValueError(f"{self.output} has a finished run; choose another output folder.")
        if self.output.exists() and any(self.output.iterdir()) and not self._resumes:
            raise ValueError(
                f"{self.output} is not empty; choose another output folder, or go on with the run that was "
                "interrupted there: --resume_from_checkpoint true."
            )
        # No process may write before every other one has seen that.
        self.state.wait_for_everyone()

    @property
    def _resumes(self) -> bool:
        return str(self.training.resume_from_checkpoint).lower() in ("true", "1", "yes")

    def _evaluation(self, examples: Any) -> Evaluation:
        model = load_classifier(self.arguments.model)
        return Evaluation.prepare(
            self.task, self.metric, examples, model, self.tokenizer, max_length=self.arguments.max_length
        )

    def _finish(self, phases: list[Path]) -> None:
        checkpoint, store = self.output / CHECKPOINT, self.output / STORE
        if not checkpoint.exists():
            with whole_or_absent(checkpoint) as folder:
                shutil.copytree(phases[-1], folder, ignore=shutil.ignore_patterns(PHASE_FACTS), dirs_exist_ok=True)
                (folder / CARD).write_text(self._card(phases))
        quantizer = self.arguments.quantizer
        text = CalibrationText(
            self.arguments.dataset or self.task.dataset, config=self.task.dataset_config, columns=self.task.columns
        )
        shard_checkpoint(checkpoint, store, quantizer=quantizer, calibration=text if quantizer == CALIBRATED else None)
        write_whole(store / CARD, (checkpoint / CARD).read_bytes())
        shutil.rmtree(self.output / WORK)

    def _card(self, phases: list[Path]) -> str:
        evaluation = self._evaluation(self.reported)
        teacher = self._scores(self.arguments.model, evaluation, [self.grid.slices], [self.grid.layers])
        scores = self._scores(phases[-1], evaluation, self.widths, self.depths)
        training, arguments = self.training, self.arguments
        facts = {
            "examples": f"{len(self.examples)}, {len(self.evaluation.examples)} more to choose the best checkpoint by",
            "widths": self.widths,
            "depths": self.depths,
            "fidelities": training.fidelities or "full only",
            "batch": training.train_batch_size * training.world_size * training.gradient_accumulation_steps,
            "learning rate": training.learning_rate,
            "weight of embeddings and hidden states": training.state_weight,
            "precision": "bfloat16 autocast" if training.bf16 else "float32",
            "seed": training.seed,
            **{phase.name: _phase_facts(phase) for phase in phases},
        }
        return model_card(
            self.output.name,
            arguments.model,
            self.task,
            scores,
            *teacher.values(),
            sentences=len(self.reported),
            facts=facts,
        )

    def _scores(self, source: str | Path, evaluation: Evaluation, widths: list[int], depths: list[int]) -> Scores:
        model = load_classifier(source).to(self.training.device)
        return submodel_scores(Submodels(model), evaluation, widths, depths)


def _phase_facts(folder: Path) -> str:
    state = json.loads((folder / PHASE_FACTS).read_text())
    seconds = [entry["train_runtime"] for entry in state["log_history"] if "train_runtime" in entry]
    return (
        f"{state['global_step']} steps ({state['epoch']:.1f} epochs), {sum(seconds):.0f} s, best mean score "
        f"{100 * state['best_metric']:.1f} at step {state['best_global_step']}"
    )

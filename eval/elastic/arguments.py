"""The options of elastic fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from sti_hf.model import Grid
from sti_hf.profiling.submodels import coarse_grid
from sti_hf.shards.layout import FIDELITIES
from sti_hf.shards.quantizers import DEFAULT_QUANTIZER, QUANTIZER_NAMES


@dataclass
class ElasticArguments:
    """What is made of what."""

    model: str = field(
        metadata={"help": "The fine-tuned model, which is the teacher too: a folder or an id on the Hub."}
    )
    task: str = field(metadata={"help": "A GLUE task that the model was fine-tuned for, such as sst2."})
    dataset: str | None = field(default=None, metadata={"help": "The task's dataset: a folder or an id on the Hub."})
    widths: list[int] | None = field(
        default=None,
        metadata={
            "help": (
                "Widths m to train. Default: a quarter, half, three quarters and all of the slices, which `sti "
                "profile-importance` measures."
            )
        },
    )
    depths: list[int] | None = field(
        default=None, metadata={"help": "Depths n to train: the first n layers. Default: from half of them on."}
    )
    width_epochs: float = field(
        default=1.0,
        metadata={
            "help": (
                "Epochs of the first phase, in which widths are trained at full depth; `num_train_epochs` are those "
                "of the second, in which widths and depths are."
            )
        },
    )
    train_samples: int | None = field(
        default=None, metadata={"help": "At most so many examples of the training split. Default: all."}
    )
    held_out: int = field(
        default=1000,
        metadata={
            "help": (
                "Examples of the training split that the best checkpoint is chosen by, at most a tenth; the "
                "validation split is left to report on."
            )
        },
    )
    importance_samples: int = field(
        default=2048, metadata={"help": "Examples by which heads and neurons are put in order."}
    )
    max_length: int = field(default=128, metadata={"help": "Tokens to which texts are cut."})
    quantizer: str = field(
        default=DEFAULT_QUANTIZER,
        metadata={
            "help": "Of the store made at the end. 'calibrated' takes texts of the training split, and minutes.",
            "choices": list(QUANTIZER_NAMES),
        },
    )

    def __post_init__(self) -> None:
        for name in ("held_out", "importance_samples", "train_samples", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value!r}.")
        if not self.width_epochs > 0:
            raise ValueError(f"width_epochs must be more than 0, not {self.width_epochs!r}.")

    def widths_of(self, grid: Grid) -> list[int]:
        """The widths to train, ascending, the full one among them. Raises `ValueError` for one that the grid lacks."""
        default = [width for _, width in coarse_grid(grid.layers, grid.slices)]
        return _chosen("widths", self.widths or default, grid.slices)

    def depths_of(self, grid: Grid) -> list[int]:
        """The depths to train, ascending, the full one among them. Raises `ValueError` for one that the grid lacks."""
        return _chosen("depths", self.depths or range(-(-grid.layers // 2), grid.layers + 1), grid.layers)


def _chosen(name: str, values: Any, most: int) -> list[int]:
    for value in values:
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be 1 to {most} for this model, not {value}.")
    return sorted({*values, most})


@dataclass
class ElasticTrainingArguments(TrainingArguments):
    """How a phase is trained: Transformers' arguments, some with other defaults, and those of the recipe.

    `output_dir` is a new folder, or with `resume_from_checkpoint` the one of an interrupted run. Where there is no
    accelerator, training uses the CPU. Raises `ValueError` for what does not go together.
    """

    output_dir: str = field(
        metadata={"help": "The folder to make, with the checkpoint and its store.", "aliases": ["--output"]}
    )
    sampled_widths: int = field(
        default=1,
        metadata={"help": "Widths between the largest and the smallest that a step trains, besides these two."},
    )
    state_weight: float = field(
        default=0.1,
        metadata={
            "help": "Weight of the distance to the teacher's embeddings and hidden states, beside that of the logits."
        },
    )
    fidelities: list[int] | None = field(
        default=None,
        metadata={
            "help": (
                "Fidelities to train for, such as 2 3 4 5 6 32: every shard has a random one in each step. "
                "Default: full only."
            )
        },
    )
    dropout: float = field(default=0.0, metadata={"help": "Of the student in training."})
    patience: int = field(
        default=2, metadata={"help": "Stop a phase after so many evaluations without a better score."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "'true': take up the run that was interrupted."}
    )
    num_train_epochs: float = field(default=2.0, metadata={"help": "Epochs of the second phase."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Examples in a batch."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Of AdamW, at its highest."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of warm-up; below 1: the share of all steps."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "Texts of about the same length share a batch."}
    )
    bf16: bool = field(default=True, metadata={"help": "Compute in bfloat16 where that is exact enough."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When submodels are scored."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When checkpoints are written, from which a run can be taken up."}
    )
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints that are kept, besides the best."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "A phase ends with the weights that scored best."}
    )
    metric_for_best_model: str | None = field(default="score", metadata={"help": "Mean score of the submodels."})
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether a higher score is better."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The data has no others."})
    logging_steps: float = field(default=100, metadata={"help": "Steps between two lines of the log."})

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        unknown = sorted(set(self.fidelities or ()) - set(FIDELITIES))
        if unknown:
            raise ValueError(
                f"There is no fidelity of {unknown[0]} bits; choose from {', '.join(map(str, FIDELITIES))}."
            )
        if self.gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing runs layers again when another submodel is set; train without it, with "
                "smaller batches if memory is short."
            )
        if self.sampled_widths < 0 or self.state_weight < 0:
            raise ValueError("sampled_widths and state_weight must be at least 0.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout!r}.")

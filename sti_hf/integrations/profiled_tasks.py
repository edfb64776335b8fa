"""What importance is profiled on: a task with labels, or running text for language models."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sti_hf.errors import ConfigurationError, UnsupportedModelError
from sti_hf.integrations.model_classes import stock_class
from sti_hf.model import get_architecture
from sti_hf.profiling.evaluation import Evaluation, Scored
from sti_hf.profiling.examples import Batch, Examples, load_examples, model_order, tokenize
from sti_hf.profiling.language import (
    WINDOW,
    WINDOWS,
    LanguageEvaluation,
    check_causal,
    load_windows,
    window_batches,
)
from sti_hf.profiling.metrics import load_metric
from sti_hf.profiling.next_tokens import NextTokenKL
from sti_hf.profiling.outputs import OutputMeasure, Projected
from sti_hf.profiling.tasks import Metric, Task
from sti_hf.shards.store import ShardStore

SENTENCES_OF_BATCH, LONGEST_SENTENCE = 32, 128
WINDOWS_OF_BATCH = 4


@dataclass(frozen=True)
class Choice:
    """Which examples are used, and how; None: as is usual for what is profiled.

    - `part`, `samples`, `seed`: as `load_examples` takes them.
    - `batch_size`: sentences or windows in a batch.
    - `max_length`: tokens to which sentences are cut, or of a window.
    """

    part: str | None = None
    samples: int | None = None
    seed: int = 0
    batch_size: int | None = None
    max_length: int | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """Ready to be measured on.

    - `batches`: inputs of the model.
    - `evaluation`: what submodels are scored by; None where there is nothing.
    - `outputs`: how far the model's answers are apart.
    - `facts`: JSON, for the profile.
    - `key`: JSON; what results depend on beside store and facts.
    """

    batches: Sequence[Batch]
    evaluation: Scored | None
    outputs: OutputMeasure
    facts: dict[str, Any]
    key: list[Any]


class Profiled(Protocol):
    """What importance is profiled on."""

    @property
    def name(self) -> str:
        """What a profile is called that was measured on it."""
        ...

    def check(self, store: ShardStore, method: str) -> None:
        """Raises `ValueError` where it is known not to fit the store's model or the method before anything is
        loaded."""
        ...

    def load(self, tokenizer: PreTrainedTokenizerBase, method: str) -> None:
        """Loads examples. Raises `ValueError` or `OSError` with one sentence where they will not do."""
        ...

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Prepared:
        """Makes the examples fit the model, which is whole and full."""
        ...


class LabelledTask:
    """A classification or regression; effects need no labels. `dataset`, `split` and `metric`: None: the task's."""

    def __init__(
        self,
        task: Task,
        choice: Choice,
        dataset: str | None = None,
        split: str | None = None,
        metric: str | None = None,
    ) -> None:
        self.task, self.choice, self._path = task, choice, metric
        self.dataset, self.split = dataset, split
        self.part = choice.part or "first"
        self.max_length = _given(choice.max_length, LONGEST_SENTENCE)
        self.batch_size = _given(choice.batch_size, SENTENCES_OF_BATCH)
        self.name = task.name
        self._examples: Examples
        self._metric: Metric | None

    def check(self, store: ShardStore, method: str) -> None:
        """See `Profiled`."""
        if self.task.metric is not None:
            self.task.check_head(AutoConfig.from_pretrained(store.path))
        elif method == "exhaustive":
            raise ConfigurationError(
                f"Method 'exhaustive' needs a metric, and task {self.name} has none; take 'effects'."
            )

    def load(self, tokenizer: PreTrainedTokenizerBase, method: str) -> None:
        """See `Profiled`."""
        needed = method == "exhaustive"
        choice = self.choice
        self._examples = load_examples(
            self.task,
            self.dataset,
            split=self.split,
            part=self.part,
            samples=choice.samples,
            seed=choice.seed,
            labelled=needed,
        )
        self._metric = self._load_metric(needed)

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Prepared:
        """See `Profiled`."""
        task, examples, metric = self.task, self._examples, self._metric
        batches = tokenize(examples, tokenizer, batch_size=self.batch_size, max_length=self.max_length, model=model)
        order = model_order(task, examples, model.config)
        evaluation = metric and Evaluation(task, metric, examples, batches, order)
        facts = {
            "task": task.name,
            "dataset": self.dataset or task.dataset,
            "dataset_config": task.dataset_config,
            "split": self.split or task.split,
            "part": self.part,
            "seed": self.choice.seed,
            "sentences": len(examples),
            "max_length": self.max_length,
            "metric": task.leading if evaluation else None,
        }
        named = getattr(task.metric, "__qualname__", task.metric)
        key = [self.batch_size, named, task.keys, examples.texts, examples.labels.tolist()]
        return Prepared(batches, evaluation, Projected(), facts, key)

    def _load_metric(self, needed: bool) -> Metric | None:
        """The metric; None where it cannot be had and is not needed."""
        if not self._examples.labelled or self.task.metric is None:
            return None
        try:
            return load_metric(self.task, self._path)
        except ValueError as error:
            if needed or self._path is not None:
                raise
            warnings.warn(f"The accuracy of submodels is not measured: {error}", stacklevel=4)
            return None


class RunningText:
    """A text file, for language models: windows of it, and the distributions of the next token."""

    name = "language"

    def __init__(self, file: str | Path, choice: Choice) -> None:
        self.file, self.choice = Path(file), choice
        self.part = choice.part or "all"
        self.batch_size = _given(choice.batch_size, WINDOWS_OF_BATCH)
        self._config: PreTrainedConfig

    def check(self, store: ShardStore, method: str) -> None:
        """See `Profiled`."""
        self._config = AutoConfig.from_pretrained(store.path)
        check_language_model(self._config)

    def load(self, tokenizer: PreTrainedTokenizerBase, method: str) -> None:
        """See `Profiled`."""
        choice = self.choice
        self._windows = load_windows(
            self.file,
            tokenizer,
            tokens=min(_given(choice.max_length, WINDOW), get_architecture(self._config).longest_input(self._config)),
            part=self.part,
            samples=_given(choice.samples, WINDOWS),
            seed=choice.seed,
        )
        self._batches = window_batches(self._windows, self.batch_size)

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Prepared:
        """See `Profiled`."""
        model.config.use_cache = False
        check_causal(model)
        evaluation = LanguageEvaluation.prepare(model, self._batches)
        windows, tokens = self._windows.shape
        facts = {
            "task": evaluation.name,
            "texts": self.file.name,
            "part": self.part,
            "seed": self.choice.seed,
            "windows": windows,
            "window_tokens": tokens,
            "metric": evaluation.leading,
            "full_perplexity": evaluation.full_perplexity,
        }
        return Prepared(self._batches, evaluation, NextTokenKL(), facts, [self.batch_size, self._windows.tolist()])


def check_language_model(config: PreTrainedConfig) -> None:
    """Raises `UnsupportedModelError` where the model with this configuration has no causal head."""
    found = stock_class(config)
    heads: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    if found not in (heads if isinstance(heads, tuple) else (heads,)):
        raise UnsupportedModelError(
            f"Text without a task is for language models, with a causal head, and this is a {found.__name__}; profile "
            "it on a task, or shard it again with the class that has the head (sti shard --model-class)."
        )


def _given(value: int | None, usual: int) -> int:
    return usual if value is None else value

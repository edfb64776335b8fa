"""Text that a model is calibrated on: from a file or a dataset to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sti_hf.errors import SourceError
from sti_hf.profiling.examples import batches_by_length, chosen_rows, load_split, longest_input
from sti_hf.shards.quantizers.calibrated.language_head import predicts_next_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLES = 512
LONGEST_TEXT = 128
TOKENS_OF_BATCH = 512
"""Texts of about the same length share a batch of at most so many tokens, or are one alone: so every batch takes about
the same time and memory."""

WINDOW = 256
WINDOWS = 64
"""Tokens of a window of running text, and how many of them a language model is calibrated on."""

Texts = list[tuple[str, ...]]
"""Texts, or pairs of texts."""


@dataclass(frozen=True)
class CalibrationText:
    """Where calibration text is.

    Args:
        source: a text file, UTF-8, a text a line (the two texts of a pair parted by a tab); or a dataset: its id on
            the Hub, or its folder.
        config: name of the dataset's configuration.
        split: of the dataset.
        columns: of the dataset, one, or two for pairs; none given: its text columns, if there are one or two.
        samples: at most so many texts, chosen at random; those of a language model are then joined, in their order.
        seed: of that choice.
    """

    source: str | Path
    config: str | None = None
    split: str = "train"
    columns: Sequence[str] = ()
    samples: int = SAMPLES
    seed: int = 0

    def read(self) -> Texts:
        """The texts. Raises `ValueError` with one sentence where there are none, or columns that are not text."""
        if self.samples < 1:
            raise SourceError(f"samples must be at least 1, not {self.samples!r}.")
        in_file = Path(self.source).is_file()
        return self._of_file() if in_file else self._of_dataset()

    def _of_file(self) -> Texts:
        if self.columns or self.config:
            raise SourceError(f"{self.source} is a text file: it has no columns and no configuration to choose.")
        try:
            lines = Path(self.source).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.source} is not a text file in UTF-8; give one, a text a line.") from error
        texts = [tuple(line.split("\t")) for line in lines if line.strip()]
        if not texts:
            raise SourceError(f"{self.source} has no text; give a file with a text a line.")
        if len({len(parts) for parts in texts}) > 1 or len(texts[0]) > 2:
            raise SourceError(f"{self.source} must have one text on every line, or two parted by a tab.")
        return [texts[row] for row in self._chosen(len(texts))]

    def _of_dataset(self) -> Texts:
        data = load_split(str(self.source), self.config, self.split)
        columns = list(self.columns) or _text_columns(data, self.source)
        missing = [column for column in columns if column not in data.column_names]
        if missing or len(columns) > 2:
            raise SourceError(
                f"Calibration takes one text column of {self.source}, or two for pairs, of {data.column_names}, "
                f"not {columns}."
            )
        if len(data) == 0:
            raise SourceError(f"Split {self.split} of {self.source} is empty; choose another.")
        chosen = data.select(self._chosen(len(data)))
        texts: Texts = list(zip(*(chosen[column] for column in columns)))
        if not all(isinstance(part, str) for text in texts for part in text):
            raise SourceError(f"Columns {columns} of {self.source} are not text; choose others with columns=.")
        return texts

    def _chosen(self, count: int) -> np.ndarray:
        return chosen_rows(count, "all", self.samples, self.seed)


def _text_columns(data: Any, source: str | Path) -> list[str]:
    columns = [name for name, feature in data.features.items() if getattr(feature, "dtype", None) == "string"]
    if len(columns) not in (1, 2):
        raise SourceError(f"Say which columns of {source} to calibrate on: it has {data.column_names}.")
    return columns


def calibration_batches(
    texts: Texts, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> list[dict[str, Tensor]]:
    """Texts as inputs of the model's forward.

    Those of a language model are joined, line after line, to windows of `WINDOW` tokens, of which `WINDOWS` are taken
    all over the text. Others are in batches by length, each cut to `LONGEST_TEXT` tokens.
    """
    if predicts_next_token(model):
        return _windows(texts, tokenizer, model)
    batches = batches_by_length(texts, tokenizer, _cuts, max_length=LONGEST_TEXT, model=model)
    return [batch.inputs for batch in batches]


def _windows(texts: Texts, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[dict[str, Tensor]]:
    joined = "\n".join(part for text in texts for part in text)
    ids = torch.tensor(tokenizer(joined, verbose=False)["input_ids"])
    size = min(WINDOW, longest_input(model), len(ids))
    windows = ids[: len(ids) // max(1, size) * size].view(-1, max(1, size))
    chosen = torch.linspace(0, len(windows) - 1, min(WINDOWS, len(windows))).long()
    rows = max(1, TOKENS_OF_BATCH // max(1, size))
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in windows[chosen].split(rows)]


def _cuts(lengths: np.ndarray) -> list[int]:
    """Where batches end of texts of these ascending lengths: each as many texts as `TOKENS_OF_BATCH` admits."""
    cuts, first = [], 0
    for place, length in enumerate(lengths.tolist()):
        if place > first and (place - first + 1) * length > TOKENS_OF_BATCH:
            cuts.append(place)
            first = place
    return cuts

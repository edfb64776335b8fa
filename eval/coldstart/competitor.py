"""What every competitor does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

Inputs = dict[str, np.ndarray]
"""`input_ids` and `attention_mask`, int64 `[1, tokens]`."""


class Competitor(ABC):
    """One way to run a sequence classifier from disk.

    Libraries are imported inside the methods: a cold process pays for those that it needs, and for no others.
    """

    folder: str
    """Name of the folder with its files; competitors with the same one share them."""

    @abstractmethod
    def prepare(self, checkpoint: Path, folder: Path) -> None:
        """Writes what `load` needs of a checkpoint into an empty folder. Not timed."""

    def prepare_tiny(self, checkpoint: Path, folder: Path) -> None:
        """The same for the tiny model that a live app has run."""
        self.prepare(checkpoint, folder)

    def tune(self, folder: Path) -> None:  # noqa: B027 - most have nothing to tune
        """Measures of this device what the competitor keeps for all later loads. Not timed."""

    def files(self, folder: Path) -> list[Path]:
        """Files and folders that a cold start finds on the disk alone."""
        return [folder]

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Loads the model as an app does. Timed."""

    def load_tiny(self, folder: Path, real: Path) -> None:
        """Loads the tiny model that a live app has run; it computes as the one in folder `real` does. Not timed."""
        self.load(folder)

    @abstractmethod
    def forward(self, inputs: Inputs) -> np.ndarray:
        """Logits float32 `[1, labels]`. Timed."""

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """Ends what runs besides the calls above."""

"""Transformers as it is, in memory, and with its weights left on the disk by accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eval.coldstart.competitor import Competitor, Inputs


class Stock(Competitor):
    """`from_pretrained` of a checkpoint that is stored in the dtype in which it runs."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.folder = f"transformers-{dtype}"

    def prepare(self, checkpoint: Path, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=self.dtype).save_pretrained(folder)

    def load(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        self.model: Any = AutoModelForSequenceClassification.from_pretrained(folder, **self.options(folder))

    def options(self, folder: Path) -> dict[str, Any]:
        """Arguments of `from_pretrained`."""
        return {"dtype": self.dtype}

    def forward(self, inputs: Inputs) -> np.ndarray:
        import torch

        with torch.no_grad():
            logits = self.model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).logits
        return logits.float().numpy()


class DiskOffload(Stock):
    """accelerate's disk offload: every forward reads every layer from the checkpoint."""

    def __init__(self) -> None:
        super().__init__("float32")

    def options(self, folder: Path) -> dict[str, Any]:
        return {"dtype": self.dtype, "device_map": {"": "disk"}, "offload_folder": folder.parent / "offload"}

"""sti_hf at a target latency."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from eval.coldstart.competitor import Competitor, Inputs

TINY_QUANTIZER = "lloyd"  # the code that runs is the same for all


class Elastic(Competitor):
    """`from_pretrained(store, sti_config=...)`, as a device does that has been profiled.

    `target_latency` and `preload_budget` are those of `STIConfig`; `source` is the quantizer that makes the store, or
    a folder with a store of the model that is ready.
    """

    def __init__(self, target_latency: str, preload_budget: str, source: str, tokens: int) -> None:
        self.sti_config = {
            "target_latency": target_latency,
            "preload_budget": preload_budget,
            "seq_len": tokens,
        }
        self.source = source
        self.folder = f"sti-{Path(source).name}"

    def prepare(self, checkpoint: Path, folder: Path) -> None:
        if Path(self.source).is_dir():
            shutil.copytree(self.source, folder / "store")
        else:
            _shard(checkpoint, folder / "store", self.source)

    def prepare_tiny(self, checkpoint: Path, folder: Path) -> None:
        _shard(checkpoint, folder / "store", TINY_QUANTIZER)

    def tune(self, folder: Path) -> None:
        """Profiles the device, and plans."""
        self.load(folder)
        self.close()

    def files(self, folder: Path) -> list[Path]:
        return [folder, Path(os.environ["STI_HOME"])]

    def load(self, folder: Path) -> None:
        self._load(folder, self.sti_config)

    def load_tiny(self, folder: Path, real: Path) -> None:
        """In the dtype that is fastest for the real model: for the tiny one another may be."""
        from sti_hf import ShardStore
        from sti_hf.integrations.device_profiles import device_profile

        profile = device_profile(ShardStore.open(real / "store"))
        self._load(folder, {**self.sti_config, "compute_dtype": profile.compute_dtype})

    def _load(self, folder: Path, sti_config: dict[str, Any]) -> None:
        from transformers import AutoModelForSequenceClassification

        import sti_hf  # noqa: F401 - teaches from_pretrained `sti_config`

        self.model: Any = AutoModelForSequenceClassification.from_pretrained(folder / "store", sti_config=sti_config)

    def forward(self, inputs: Inputs) -> np.ndarray:
        import torch

        logits = self.model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).logits
        return logits.float().numpy()

    def close(self) -> None:
        self.model.sti.close()


def _shard(checkpoint: Path, store: Path, quantizer: str) -> None:
    import sti_hf

    sti_hf.shard_checkpoint(checkpoint, store, quantizer=quantizer)

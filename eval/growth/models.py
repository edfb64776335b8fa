"""Models with random weights, of any size, and their stores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import MPNetConfig, MPNetForSequenceClassification

import sti_hf

HEAD = 64
"""Width of an attention head, as in BERT of any size."""
LONGEST = 512


@dataclass(frozen=True)
class Size:
    """A model like MPNet: its layers, and its hidden size."""

    layers: int
    width: int

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.layers}x{self.width}"


def checkpoint(size: Size, work: Path) -> Path:
    """The checkpoint of a model of this size in `work`, made where absent."""
    folder = work / f"model-{size.name}"
    if not folder.exists():
        config = MPNetConfig(
            num_hidden_layers=size.layers,
            hidden_size=size.width,
            num_attention_heads=size.width // HEAD,
            intermediate_size=4 * size.width,
            max_position_embeddings=LONGEST + 2,
        )
        torch.manual_seed(0)
        unfinished = folder.with_suffix(".unfinished")
        MPNetForSequenceClassification(config).save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


def store(size: Size, work: Path, quantizer: str) -> sti_hf.ShardStore:
    """The store of that model, made where absent."""
    folder = work / f"store-{size.name}-{quantizer}"
    if not folder.exists():
        sti_hf.shard_checkpoint(checkpoint(size, work), folder, quantizer=quantizer)
    return sti_hf.ShardStore.open(folder)

"""The *live app* cold start: the process runs and its code has executed, only the model's files are not in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

import sti_hf

TOKENS = 128
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


def tiny_config(model_type: str, **sizes: int) -> AutoConfig:
    """The configuration of a tiny model of a family: 2 layers, hidden 64, unless `sizes` say otherwise."""
    return AutoConfig.for_model(
        model_type, **{**SIZES, **sizes}, vocab_size=99, max_position_embeddings=TOKENS + 2, dtype=torch.float32
    )


def save_tiny(model_type: str, folder: Path, **sizes: int) -> None:
    """Saves a tiny classifier with random weights."""
    AutoModelForSequenceClassification.from_config(tiny_config(model_type, **sizes)).save_pretrained(folder)


def warm_up(model_type: str, dtype: torch.dtype = torch.float32, elastic: bool = False) -> None:
    """Runs a tiny model of the family once, stock or (`elastic`) from shards."""
    inputs = {"input_ids": torch.ones(1, TOKENS, dtype=torch.long) * 5}
    with torch.no_grad():
        if not elastic:
            AutoModel.from_config(tiny_config(model_type), dtype=dtype)(**inputs)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_tiny(model_type, Path(folder))
            model = AutoModelForSequenceClassification.from_pretrained(folder, sti_config=sti_hf.STIConfig())
            model(**inputs)
            model.sti.close()

"""The *live app* cold start: the process runs and its code has executed, only the model's files are not in memory."""

from __future__ import annotations

import tempfile

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

import sti_hf

TOKENS = 128


def warm_up(model_type: str, dtype: torch.dtype = torch.float32, elastic: bool = False) -> None:
    """Runs a tiny model of the family once, stock or (`elastic`) from shards."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = AutoConfig.for_model(model_type, **sizes, vocab_size=99, max_position_embeddings=TOKENS + 2)
    inputs = {"input_ids": torch.ones(1, TOKENS, dtype=torch.long) * 5}
    with torch.no_grad():
        if not elastic:
            AutoModel.from_config(config, dtype=dtype)(**inputs)
            return
        with tempfile.TemporaryDirectory() as folder:
            AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
            model = AutoModelForSequenceClassification.from_pretrained(folder, sti_config=sti_hf.STIConfig())
            model(**inputs)
            model.sti.close()

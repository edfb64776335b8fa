"""DistilBERT."""

from __future__ import annotations

from sti_hf.architectures.base import Architecture, Matrix


class DistilBert(Architecture):
    """DistilBERT."""

    model_types = ("distilbert",)
    layers = "transformer.layer"
    matrices = (
        Matrix("q", "attention.q_lin"),
        Matrix("k", "attention.k_lin"),
        Matrix("v", "attention.v_lin"),
        Matrix("o", "attention.out_lin"),
        Matrix("up", "ffn.lin1"),
        Matrix("down", "ffn.lin2"),
    )
    lm_decoders = ("vocab_projector",)
    ffn_size = "hidden_dim"

"""DistilBERT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sti_hf.model.architecture import WORD_EMBEDDINGS, Architecture, Matrix

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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

    def embeddings(self, config: PreTrainedConfig) -> dict[str, str]:
        """Without sinusoidal position embeddings: Transformers computes these anew, in place, wherever it loads."""
        if config.sinusoidal_pos_embds:
            return {WORD_EMBEDDINGS: self.tables[WORD_EMBEDDINGS]}
        return super().embeddings(config)

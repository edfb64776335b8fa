"""ModernBERT."""

from __future__ import annotations

from sti_hf.model.architecture import WORD_EMBEDDINGS, Fused, Matrix
from sti_hf.model.families.rotary import RotaryEncoder

QKV = Fused("attn.Wqkv", ("q", "k", "v"))
GATE_UP = Fused("mlp.Wi", ("gate", "up"))


class ModernBert(RotaryEncoder):
    """ModernBERT: projections are fused; the gate is what the activation is applied to."""

    model_types = ("modernbert",)
    fused = (QKV, GATE_UP)
    matrices = (*QKV.matrices(), Matrix("o", "attn.Wo"), *GATE_UP.matrices(), Matrix("down", "mlp.Wo"))
    tables = {WORD_EMBEDDINGS: "embeddings.tok_embeddings"}
    lm_decoders = ("decoder",)

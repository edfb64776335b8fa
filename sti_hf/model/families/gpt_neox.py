"""GPT-NeoX, such as Pythia."""

from __future__ import annotations

from sti_hf.model.architecture import WORD_EMBEDDINGS, Fused, Matrix
from sti_hf.model.families.rotary import RotaryEncoder


class GPTNeoX(RotaryEncoder):
    """GPT-NeoX: queries, keys and values are fused head by head."""

    model_types = ("gpt_neox",)
    fused = (Fused("attention.query_key_value", ("q", "k", "v"), by_head=True),)
    matrices = (
        *fused[0].matrices(),
        Matrix("o", "attention.dense"),
        Matrix("up", "mlp.dense_h_to_4h"),
        Matrix("down", "mlp.dense_4h_to_h"),
    )
    tables = {WORD_EMBEDDINGS: "embed_in"}
    lm_decoders = ("lm_head", "embed_out")

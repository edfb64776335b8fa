"""OPT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sti_hf.model.architecture import WORD_EMBEDDINGS, Architecture, Matrix

if TYPE_CHECKING:
    from torch import nn


class OPT(Architecture):
    """OPT. Positions stay resident: they are looked up by what is padding."""

    model_types = ("opt",)
    layers = "decoder.layers"
    matrices = (
        *(Matrix(name, f"self_attn.{name}_proj") for name in ("q", "k", "v")),
        Matrix("o", "self_attn.out_proj"),
        Matrix("up", "fc1"),
        Matrix("down", "fc2"),
    )
    tables = {WORD_EMBEDDINGS: "decoder.embed_tokens"}
    lm_decoders = ("lm_head",)
    ffn_size = "ffn_dim"

    def prepare_layer(self, layer: nn.Module, slices: int) -> None:
        """Set the number of heads into which attention splits what is projected."""
        attention: Any = layer.get_submodule("self_attn")
        attention.num_heads = slices

"""GPT-2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sti_hf.model.architecture import POSITION_EMBEDDINGS, WORD_EMBEDDINGS, Architecture, Fused

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


class GPT2(Architecture):
    """GPT-2. All its linears are transposed."""

    model_types = ("gpt2",)
    layers = "h"
    fused = (
        Fused("attn.c_attn", ("q", "k", "v")),
        Fused("attn.c_proj", ("o",)),
        Fused("mlp.c_fc", ("up",)),
        Fused("mlp.c_proj", ("down",)),
    )
    matrices = tuple(matrix for each in fused for matrix in each.matrices())
    tables = {WORD_EMBEDDINGS: "wte", POSITION_EMBEDDINGS: "wpe"}
    lm_decoders = ("lm_head",)
    ffn_size = "n_inner"

    def ffn_neurons(self, config: PreTrainedConfig) -> int:
        """Four times the hidden size, unless the configuration says otherwise."""
        return int(config.n_inner or 4 * config.hidden_size)

    def prepare_layer(self, layer: nn.Module, slices: int) -> None:
        """Set the width of queries, keys and values among what is projected."""
        attention: Any = layer.get_submodule("attn")
        attention.split_size = slices * attention.head_dim

"""Language models with the layers of Llama, named as Llama's: SmolLM, Mistral, Qwen, Granite, Gemma, OLMo, Phi-3."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

from sti_hf.model.architecture import WORD_EMBEDDINGS, Fused, Matrix
from sti_hf.model.families.rotary import ATTENTION, RotaryEncoder

if TYPE_CHECKING:
    from torch import nn


class Llama(RotaryEncoder):
    """Llama, and whoever has kept its layers. A slice is a key and value head with all its queries."""

    model_types: ClassVar[tuple[str, ...]] = (
        *("llama", "smollm3", "mistral", "qwen2", "qwen3", "granite"),
        *("gemma", "gemma2", "gemma3_text"),
    )
    tables = {WORD_EMBEDDINGS: "embed_tokens"}
    lm_decoders = ("lm_head",)


class Olmo2(Llama):
    """OLMo 2 and 3: norms go over the queries, and the keys, of all heads."""

    model_types = ("olmo2", "olmo3")
    droppable_heads = False


class Phi3(Llama):
    """Phi-3: fused projections."""

    model_types = ("phi3",)
    fused = (Fused("self_attn.qkv_proj", ("q", "k", "v")), Fused("mlp.gate_up_proj", ("gate", "up")))
    matrices = (*fused[0].matrices(), ATTENTION[3], *fused[1].matrices(), Matrix("down", "mlp.down_proj"))

    def prepare_layer(self, layer: nn.Module, slices: int) -> None:
        """Set the numbers of heads by which attention tells queries from keys: it asks its configuration."""
        attention: Any = layer.get_submodule("self_attn")
        if attention.num_key_value_heads != slices:
            config = copy.copy(attention.config)
            config.num_attention_heads, config.num_key_value_heads = slices * attention.num_key_value_groups, slices
            attention.config, attention.num_key_value_heads = config, slices

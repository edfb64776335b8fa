"""MPNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sti_hf.model.architecture import Architecture, Matrix

if TYPE_CHECKING:
    import torch
    from torch import nn


class MPNet(Architecture):
    """MPNet. Its encoder computes one position bias for all heads of all layers; here it follows the active heads."""

    model_types = ("mpnet",)
    layers = "encoder.layer"
    matrices = (
        Matrix("q", "attention.attn.q"),
        Matrix("k", "attention.attn.k"),
        Matrix("v", "attention.attn.v"),
        Matrix("o", "attention.attn.o"),
        Matrix("up", "intermediate.dense"),
        Matrix("down", "output.dense"),
    )
    skips_padding = True
    lm_decoders = ("lm_head.decoder",)
    head_tables = ("encoder.relative_attention_bias",)

    def prepare_layer(self, layer: nn.Module, slices: int) -> None:
        """Set the width into which the attention reshapes its heads' outputs."""
        attention: Any = layer.get_submodule("attention.attn")
        attention.all_head_size = slices * attention.attention_head_size

    def layer_inputs(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], heads: Sequence[int]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Select the active heads of the position bias, `[batch, heads, query, key]`."""
        if len(args) > 2:
            hidden_states, attention_mask, position_bias, *others = args
            return (hidden_states, attention_mask, _bias_of(position_bias, heads), *others), kwargs
        return args, {**kwargs, "position_bias": _bias_of(kwargs.get("position_bias"), heads)}


def _bias_of(position_bias: torch.Tensor | None, heads: Sequence[int]) -> torch.Tensor | None:
    if position_bias is None:
        return None
    if all(head == slice_ for slice_, head in enumerate(heads)):
        return position_bias[:, : len(heads)]  # a view
    return position_bias[:, list(heads)]

"""DeBERTa, versions 2 and 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sti_hf.errors import UnsupportedModelError
from sti_hf.model.architecture import POSITION_EMBEDDINGS, Architecture, Matrix

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


class DebertaV2(Architecture):
    """DeBERTa v2 and v3. Queries and keys are projected from the embeddings of distances, too, by the same weights."""

    model_types = ("deberta-v2",)
    layers = "encoder.layer"
    matrices = (
        Matrix("q", "attention.self.query_proj"),
        Matrix("k", "attention.self.key_proj"),
        Matrix("v", "attention.self.value_proj"),
        Matrix("o", "attention.output.dense"),
        Matrix("up", "intermediate.dense"),
        Matrix("down", "output.dense"),
    )
    lm_decoders = ("cls.predictions.decoder",)

    def check(self, config: PreTrainedConfig) -> None:
        """Also: projections of distances by weights of their own are not cut."""
        super().check(config)
        if getattr(config, "conv_kernel_size", 0) > 0:
            raise UnsupportedModelError(
                "DeBERTa models with a convolution behind their first layer (config.conv_kernel_size) are not "
                "supported; those of version 3 have none."
            )
        own = {"c2p", "p2c"} & set(config.pos_att_type or ())
        if config.relative_attention and own and not getattr(config, "share_att_key", False):
            raise UnsupportedModelError(
                "DeBERTa models with projections of their own for distances (config.share_att_key is false) are not "
                "supported; those of versions 2 and 3 that Microsoft has published share them."
            )

    def embeddings(self, config: PreTrainedConfig) -> dict[str, str]:
        """Without positions where those are only distances."""
        tables = super().embeddings(config)
        if not config.position_biased_input:
            del tables[POSITION_EMBEDDINGS]
        return tables

    def bounds_positions(self, config: PreTrainedConfig) -> bool:
        """Distances are clipped, positions are not."""
        return bool(config.position_biased_input)

    def prepare_layer(self, layer: nn.Module, slices: int) -> None:
        """Set the number of heads into which attention splits what is projected."""
        attention: Any = layer.get_submodule("attention.self")
        attention.num_attention_heads = slices

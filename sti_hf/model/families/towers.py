"""Towers: ViT, DeiT, DINOv2 and DINOv3, and those of CLIP and SigLIP for images and for texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sti_hf.errors import UnsupportedModelError
from sti_hf.model.architecture import POSITION_EMBEDDINGS, WORD_EMBEDDINGS, Architecture, Matrix
from sti_hf.model.images import ImageInputs

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

MLP = (Matrix("up", "mlp.fc1"), Matrix("down", "mlp.fc2"))
VIT_MATRICES = (*(Matrix(name, f"attention.{name}_proj") for name in ("q", "k", "v", "o")), *MLP)
CLIP_MATRICES = (
    *(Matrix(name, f"self_attn.{name}_proj") for name in ("q", "k", "v")),
    Matrix("o", "self_attn.out_proj"),
    *MLP,
)


class ViT(ImageInputs, Architecture):
    """ViT, and DeiT with its second class token."""

    model_types: ClassVar[tuple[str, ...]] = ("vit", "deit")
    layers: ClassVar[str] = "layers"
    matrices = VIT_MATRICES

    def other_tokens(self, config: PreTrainedConfig) -> int:
        """Tokens of an image that are no patches: of classes, registers."""
        classes = 2 if config.model_type == "deit" else 1
        return classes + int(getattr(config, "num_register_tokens", 0))


class Dinov2(ViT):
    """DINOv2, with registers or without. Those with SwiGLU have another cut, and are refused."""

    model_types = ("dinov2", "dinov2_with_registers")
    layers = "encoder.layer"

    def check(self, config: PreTrainedConfig) -> None:
        """Also: SwiGLU has fused weights of a size of its own."""
        super().check(config)
        if config.use_swiglu_ffn:
            raise UnsupportedModelError(
                "DINOv2 models with a SwiGLU FFN (giant) are not supported; its smaller sizes are."
            )

    def ffn_neurons(self, config: PreTrainedConfig) -> int:
        """As many times the hidden size."""
        return int(config.hidden_size * config.mlp_ratio)


class Dinov3(ViT):
    """DINOv3: positions are rotations. What Transformers takes for its base are the layers."""

    model_types = ("dinov3_vit",)
    layers = "layer"
    matrices = (*VIT_MATRICES[:4], Matrix("up", "mlp.up_proj"), Matrix("down", "mlp.down_proj"))

    def check(self, config: PreTrainedConfig) -> None:
        """Also: gated FFNs have another cut."""
        super().check(config)
        if config.use_gated_mlp:
            raise UnsupportedModelError("DINOv3 models with a gated FFN are not supported; those without one are.")

    def prepare_layer(self, layer: nn.Module, slices: int) -> None:
        """Set the number of heads into which attention splits what is projected."""
        attention: Any = layer.get_submodule("attention")
        attention.num_heads = slices


class ClipVision(ViT):
    """CLIP's tower for images."""

    model_types = ("clip_vision_model",)
    layers = "encoder.layers"
    matrices = CLIP_MATRICES


class SiglipVision(ClipVision):
    """SigLIP's tower for images, without a class token."""

    model_types = ("siglip_vision_model",)

    def other_tokens(self, config: PreTrainedConfig) -> int:
        """None."""
        return 0


class TextTower(Architecture):
    """CLIP's and SigLIP's towers for texts."""

    model_types = ("clip_text_model", "siglip_text_model")
    layers = "encoder.layers"
    matrices = CLIP_MATRICES
    tables: ClassVar[dict[str, str]] = {
        WORD_EMBEDDINGS: "embeddings.token_embedding",
        POSITION_EMBEDDINGS: "embeddings.position_embedding",
    }

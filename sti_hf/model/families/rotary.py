"""Text encoders with the layers of Llama, named as Llama's, and both directions: NomicBERT, GTE, EuroBERT, Jina."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sti_hf.model.architecture import WORD_EMBEDDINGS, Architecture, Matrix

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ATTENTION = tuple(Matrix(name, f"self_attn.{name}_proj") for name in ("q", "k", "v", "o"))
GATED = tuple(Matrix(name, f"mlp.{name}_proj") for name in ("up", "gate", "down"))


class RotaryEncoder(Architecture):
    """NomicBERT and GTE: positions are rotations, FFNs are gated."""

    model_types: ClassVar[tuple[str, ...]] = ("nomic_bert", "gte")
    layers = "layers"
    matrices = (*ATTENTION, *GATED)
    tables = {WORD_EMBEDDINGS: "embeddings.word_embeddings"}
    lm_decoders: ClassVar[tuple[str, ...]] = ("cls.predictions.decoder", "lm_head.decoder")

    def bounds_positions(self, config: PreTrainedConfig) -> bool:
        """They are rotations."""
        return False


class EuroBert(RotaryEncoder):
    """EuroBERT: query heads may share keys and values."""

    model_types = ("eurobert",)
    tables = {WORD_EMBEDDINGS: "embed_tokens"}
    lm_decoders = ("lm_head",)


class JinaEmbeddingsV3(RotaryEncoder):
    """Jina embeddings v3: FFNs without a gate."""

    model_types = ("jina_embeddings_v3",)
    matrices = (*ATTENTION, Matrix("up", "mlp.fc1"), Matrix("down", "mlp.fc2"))
    lm_decoders = ("lm_head.decoder",)

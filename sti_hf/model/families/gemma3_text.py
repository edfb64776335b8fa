"""The text encoder of Gemma 3, as in EmbeddingGemma."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sti_hf.errors import UnsupportedModelError
from sti_hf.model.architecture import WORD_EMBEDDINGS
from sti_hf.model.families.rotary import RotaryEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Gemma3Text(RotaryEncoder):
    """Gemma 3 where each token sees those behind it, too. Its embeddings are scaled."""

    model_types = ("gemma3_text",)
    tables = {WORD_EMBEDDINGS: "embed_tokens"}
    lm_decoders = ("lm_head",)

    def check(self, config: PreTrainedConfig) -> None:
        """Also: language models are not supported yet."""
        super().check(config)
        if not config.use_bidirectional_attention:
            raise UnsupportedModelError(
                "Gemma 3 is supported as an encoder, such as EmbeddingGemma (config.use_bidirectional_attention), and "
                "not as a language model."
            )

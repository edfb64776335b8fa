"""ELECTRA."""

from __future__ import annotations

from sti_hf.model.families.bert import Bert


class Electra(Bert):
    """ELECTRA. Its embeddings may be narrower than its layers: the decoder reads `config.embedding_size` features."""

    model_types = ("electra",)
    lm_decoders = ("generator_lm_head",)

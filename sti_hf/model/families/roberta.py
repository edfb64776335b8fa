"""RoBERTa and the models with its code: XLM-R, CamemBERT, data2vec, and the two with layer norms first."""

from __future__ import annotations

from sti_hf.model.families.bert import Bert


class Roberta(Bert):
    """RoBERTa. Where a layer norms its inputs (first or last) does not matter to its matrices."""

    model_types = ("roberta", "xlm-roberta", "camembert", "data2vec-text", "roberta-prelayernorm", "xlm-roberta-xl")
    skips_padding = True
    lm_decoders = ("lm_head.decoder",)

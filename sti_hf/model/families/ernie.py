"""ERNIE."""

from __future__ import annotations

from sti_hf.model.families.bert import Bert


class Ernie(Bert):
    """ERNIE: BERT's layers; its task embeddings are few, and stay resident."""

    model_types = ("ernie",)

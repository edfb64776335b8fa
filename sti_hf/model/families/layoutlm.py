"""LayoutLM."""

from __future__ import annotations

from sti_hf.model.architecture import Architecture
from sti_hf.model.families.bert import Bert

COORDINATES = ("x", "y", "h", "w")


class LayoutLM(Bert):
    """LayoutLM: BERT's layers, on words that have a place on a page."""

    model_types = ("layoutlm",)
    tables = {
        **Architecture.tables,
        **{f"{name}_position_embeddings": f"embeddings.{name}_position_embeddings" for name in COORDINATES},
    }

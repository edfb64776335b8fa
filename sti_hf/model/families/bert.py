"""BERT."""

from __future__ import annotations

from typing import ClassVar

from sti_hf.model.architecture import Architecture, Matrix


class Bert(Architecture):
    """BERT. Its layers' names are those of most encoders that came after it."""

    model_types: ClassVar[tuple[str, ...]] = ("bert",)
    layers = "encoder.layer"
    matrices = (
        Matrix("q", "attention.self.query"),
        Matrix("k", "attention.self.key"),
        Matrix("v", "attention.self.value"),
        Matrix("o", "attention.output.dense"),
        Matrix("up", "intermediate.dense"),
        Matrix("down", "output.dense"),
    )
    lm_decoders = ("cls.predictions.decoder",)

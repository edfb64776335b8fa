"""optimum-quanto: int4 weights, saved quantized and loaded so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eval.coldstart.competitor import Competitor, Inputs


class Quanto(Competitor):
    """The linear layers in int4 but for the task head, activations in float32."""

    folder = "quanto-int4"

    def prepare(self, checkpoint: Path, folder: Path) -> None:
        from optimum.quanto import qint4
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype="float32")
        _model_class().quantize(model, weights=qint4, exclude="classifier*").save_pretrained(folder)

    def load(self, folder: Path) -> None:
        self.model: Any = _model_class().from_pretrained(folder)

    def forward(self, inputs: Inputs) -> np.ndarray:
        import torch

        with torch.no_grad():
            logits = self.model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).logits
        return logits.numpy()


def _model_class() -> Any:
    """quanto's wrapper, for the kind of model that is run here."""
    from optimum.quanto import QuantizedTransformersModel
    from transformers import AutoModelForSequenceClassification

    class QuantizedClassifier(QuantizedTransformersModel):
        auto_class = AutoModelForSequenceClassification

    return QuantizedClassifier

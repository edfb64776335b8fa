"""ONNX Runtime on the CPU: exported by PyTorch, quantized dynamically, and optimized ahead of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eval.coldstart.competitor import Competitor, Inputs

MODEL = "model.onnx"
TOKENS = 128


class OnnxRuntime(Competitor):
    """A session on the optimized graph. `int8`: weights int8, activations quantized as they come (dynamically)."""

    def __init__(self, int8: bool) -> None:
        self.int8 = int8
        self.folder = f"onnxruntime-{'int8' if int8 else 'float32'}"

    def prepare(self, checkpoint: Path, folder: Path) -> None:
        import onnxruntime

        exported = folder / "exported.onnx"
        _export(checkpoint, exported)
        if self.int8:
            _quantize(exported)
        # Graph optimizations done offline, as ONNX Runtime advises where startup matters.
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(folder / MODEL)
        options.log_severity_level = 3  # it warns that the result is for this kind of machine
        onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
        exported.unlink()

    def load(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # they are done
        self.session: Any = onnxruntime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])

    def forward(self, inputs: Inputs) -> np.ndarray:
        return self.session.run(None, inputs)[0]


def _export(checkpoint: Path, path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype="float32").eval()
    ids = torch.full((1, TOKENS), 5)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    torch.onnx.export(
        model,
        (),
        path,
        kwargs=inputs,
        input_names=list(inputs),
        output_names=["logits"],
        dynamic_shapes={name: {1: "tokens"} for name in inputs},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _quantize(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(path, path, skip_symbolic_shape=True)
    quantize_dynamic(path, path, weight_type=QuantType.QInt8)

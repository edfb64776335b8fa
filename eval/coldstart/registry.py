"""The competitors by name."""

from __future__ import annotations

from eval.coldstart.competitor import Competitor
from eval.coldstart.elastic import Elastic
from eval.coldstart.onnx_runtime import OnnxRuntime
from eval.coldstart.quanto import Quanto
from eval.coldstart.stock import DiskOffload, Stock

STI = "sti_hf"
FP32 = "transformers-fp32"
OTHERS = {
    FP32: lambda: Stock("float32"),
    "transformers-bf16": lambda: Stock("bfloat16"),
    "accelerate-disk": DiskOffload,
    "onnxruntime-fp32": lambda: OnnxRuntime(int8=False),
    "onnxruntime-int8": lambda: OnnxRuntime(int8=True),
    "quanto-int4": Quanto,
}


def sti_name(target_latency: str, preload_budget: str) -> str:
    """The name of sti_hf at T and S, such as "sti_hf-200ms-1MB"."""
    return f"{STI}-{target_latency}-{preload_budget}"


def make(name: str, store: str, tokens: int) -> Competitor:
    """The competitor of a name; `store` and `tokens` are `Elastic`'s. Raises `ValueError` for an unknown name."""
    if name in OTHERS:
        return OTHERS[name]()
    kind, *settings = name.split("-")
    if kind != STI or len(settings) != 2:
        raise ValueError(f"{name} is no competitor: choose from {', '.join(OTHERS)}, {sti_name('T', 'S')}.")
    return Elastic(*settings, store, tokens)

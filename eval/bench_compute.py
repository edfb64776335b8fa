"""What running from shards costs where nothing is read: all shards preloaded, against stock Transformers.

    python -m eval.bench_compute --model CHECKPOINT [--tokens 128] [--bits 4]

Interleaved rounds, medians. The last line tells what sti_hf's own code adds to a layer of the stock forward: taken on
models of the family whose layers are so small that they cost next to nothing themselves, from what a forward takes
with more layers and with fewer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from eval.live_app import save_tiny
from sti_hf import STIConfig
from sti_hf.integrations.model_classes import stock_class
from sti_hf.integrations.store_cache import resolve_store

DTYPES = ("float32", "bfloat16")
TINY_LAYERS = (12, 36)
TINY_TOKENS = 16


class Forwards:
    """One model, run again and again."""

    def __init__(self, model: Any, tokens: int) -> None:
        self.model = model
        ids = torch.randint(10, model.config.vocab_size, (1, tokens))
        self.inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self.seconds: list[float] = []
        self.decompress: list[float] = []

    def run(self) -> None:
        """One forward."""
        with torch.no_grad():
            begun = time.perf_counter()
            self.model(**self.inputs)
            self.seconds.append(time.perf_counter() - begun)
        if hasattr(self.model, "sti"):
            self.decompress.append(float(self.model.sti.last_run.decompress.sum()))

    def result(self) -> dict[str, float]:
        """Medians in milliseconds; the first two forwards do not count."""
        found = {"forward_ms": median(self.seconds[2:]) * 1e3}
        if self.decompress:
            found["decompress_ms"] = median(self.decompress[2:]) * 1e3
            found["decompress_share"] = found["decompress_ms"] / found["forward_ms"]
        return found


def compare(models: dict[str, Callable[[], Any]], tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of every model's forwards, in interleaved rounds."""
    forwards = {name: Forwards(make(), tokens) for name, make in models.items()}
    for _ in range(rounds + 2):
        for each in forwards.values():
            each.run()
    for each in forwards.values():
        if hasattr(each.model, "sti"):
            each.model.sti.close()
    return {name: each.result() for name, each in forwards.items()}


def models_of(checkpoint: str | Path, bits: int) -> dict[str, Callable[[], Any]]:
    """Stock and elastic models of a checkpoint in each dtype."""
    model_class: Any = stock_class(AutoConfig.from_pretrained(checkpoint))
    store = resolve_store(checkpoint, STIConfig().quantizer).path

    def stock(dtype: str) -> Any:
        return model_class.from_pretrained(checkpoint, dtype=dtype)

    def elastic(dtype: str) -> Any:
        config = STIConfig(strategy="preload", fidelity=bits, compute_dtype=dtype, target_latency=60.0)
        return model_class.from_pretrained(store, sti_config=config)

    models: dict[str, Callable[[], Any]] = {}
    for dtype in DTYPES:
        models[f"Transformers {dtype}"] = lambda dtype=dtype: stock(dtype)
        models[f"sti_hf {dtype}, {bits} bits"] = lambda dtype=dtype: elastic(dtype)
    return models


def own_seconds(model_type: str, bits: int, rounds: int) -> float:
    """Seconds that a layer of a tiny float32 model takes longer in sti_hf than in Transformers."""
    longer = []
    for layers in TINY_LAYERS:
        with tempfile.TemporaryDirectory() as folder:
            save_tiny(model_type, Path(folder), num_hidden_layers=layers)
            stock, elastic, *_ = compare(models_of(folder, bits), TINY_TOKENS, rounds).values()
        longer.append((elastic["forward_ms"] - stock["forward_ms"]) / 1e3)
    few, many = TINY_LAYERS
    return (longer[1] - longer[0]) / (many - few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint (sharded once into the cache)")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    results = compare(models_of(arguments.model, arguments.bits), arguments.tokens, arguments.rounds)
    print(f"{arguments.tokens} tokens, {torch.get_num_threads()} threads, medians of {arguments.rounds} rounds")
    for name, result in results.items():
        line = "  ".join(f"{key} {value:.3g}" for key, value in result.items())
        print(f"{name:<28} {line}")
    names = list(results)
    for stock, elastic in zip(names[::2], names[1::2]):
        print(f"{elastic} over {stock}: {results[elastic]['forward_ms'] / results[stock]['forward_ms']:.2f}")
    own = own_seconds(AutoConfig.from_pretrained(arguments.model).model_type, arguments.bits, 10 * arguments.rounds)
    print(f"sti_hf's own code, per layer: {own * 1e6:.0f} us")
    if arguments.json:
        arguments.json.write_text(json.dumps({"models": results, "own_us_per_layer": own * 1e6}, indent=1))


if __name__ == "__main__":
    main()

"""Where the milliseconds of a first answer go: from `from_pretrained` on a store to the first logits.

    python -m eval.profile_ttfa --model CHECKPOINT_OR_STORE [--target-latency 200ms] [--disk-rate 200]

*Live app* cold start: this process has run a tiny model of the same family, and the store's files are out of the page
cache. Prints medians of untraced cold starts, then the tree of calls of a traced one.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging

import sti_hf
from eval.call_tree import Tracer
from eval.disk import add_rate_option, disk_rate, evict
from eval.live_app import warm_up
from sti_hf.integrations.model_classes import stock_class
from sti_hf.integrations.store_cache import resolve_store


def auto_class(config: PreTrainedConfig) -> Any:
    """The Auto class with which a user loads the model that this is the configuration of."""
    model_class = stock_class(config)
    names = [name for name in dir(transformers) if name.startswith("AutoModel")]
    return next(
        auto
        for auto in (getattr(transformers, name) for name in names)
        if auto._model_mapping.get(type(config), None) is model_class
    )


class ColdStart:
    """One `from_pretrained` and one forward, with random tokens."""

    def __init__(self, store: sti_hf.ShardStore, sti_config: dict[str, Any], tokens: int) -> None:
        self.store, self.sti_config, self.tokens = store, sti_config, tokens
        self.config = AutoConfig.from_pretrained(store.path)
        self.auto_class: Any = auto_class(self.config)

    def load(self) -> Any:
        """The model."""
        return self.auto_class.from_pretrained(self.store.path, sti_config=self.sti_config)

    def seconds(self) -> dict[str, float]:
        """Seconds of a cold start and its parts."""
        inputs = self.prepare()
        begun = time.perf_counter()
        model = self.load()
        loaded = time.perf_counter()
        model(**inputs)
        answered = time.perf_counter()
        run = model.sti.last_run
        model.sti.close()
        return {
            "TTFA": answered - begun,
            "from_pretrained": loaded - begun,
            "first forward": answered - loaded,
            "  embedding rows": run.embedding,
            "  waiting for shards": float(run.wait.sum()),
            "  decompressing": float(run.decompress.sum()),
            "  computing layers": float(run.compute.sum()),
        }

    def trace(self) -> Tracer:
        """The calls of a cold start."""
        inputs = self.prepare()
        tracer = Tracer()
        model = tracer.run(lambda: self._answer(inputs))
        model.sti.close()
        return tracer

    def _answer(self, inputs: dict[str, torch.Tensor]) -> Any:
        model = self.load()
        model(**inputs)
        return model

    def prepare(self) -> dict[str, torch.Tensor]:
        """Inputs, for a store that is out of memory."""
        ids = torch.randint(10, self.config.vocab_size, (1, self.tokens))
        evict(self.store.path, Path(os.environ["STI_HOME"]))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a store, or a checkpoint (sharded once into the cache)")
    parser.add_argument("--target-latency", default="200ms")
    parser.add_argument("--preload-budget", default="1MB")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threshold", type=float, default=0.3, help="least milliseconds of a call that is shown")
    parser.add_argument("--json", type=Path, help="write the medians here too")
    add_rate_option(parser)
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    store = resolve_store(arguments.model, sti_hf.STIConfig().quantizer)
    settings = {"target_latency": arguments.target_latency, "preload_budget": arguments.preload_budget}
    with ExitStack() as stack:
        how = stack.enter_context(disk_rate(store.path, arguments.disk_rate, arguments.emulate))
        # Device profiles are of a disk rate: a cache of its own keeps this one's apart.
        os.environ["STI_HOME"] = stack.enter_context(tempfile.TemporaryDirectory())
        warm_up(store.index.model_type, elastic=True)
        cold_start = ColdStart(store, {**settings, "seq_len": arguments.tokens}, arguments.tokens)
        cold_start.seconds()  # profiles the device
        runs = [cold_start.seconds() for _ in range(arguments.runs)]
        tracer = cold_start.trace()
    medians = {name: median(run[name] for run in runs) * 1e3 for name in runs[0]}
    print(
        f"disk: {how}; {torch.get_num_threads()} threads; {arguments.tokens} tokens; medians of {arguments.runs} runs"
    )
    for name, milliseconds in medians.items():
        print(f"{milliseconds:9.2f} ms  {name}")
    print("\nA traced run, which tracing makes slower:")
    print("\n".join(tracer.root.lines(arguments.threshold / 1e3)))
    if arguments.json:
        arguments.json.write_text(json.dumps({"disk": how, "milliseconds": medians}, indent=1))


if __name__ == "__main__":
    main()

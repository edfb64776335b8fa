"""Growth of the resident set: from before `from_pretrained` to after many inferences, against the stock model.

    python -m eval.bench_memory --model CHECKPOINT

Each model runs in a process of its own that has run a tiny model of the same family before.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile

import torch
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

import sti_hf
from eval import accounting
from eval.disk import add_rate_option, disk_rate
from eval.live_app import warm_up
from sti_hf.integrations.device_profiles import device_profile
from sti_hf.integrations.model_classes import stock_class
from sti_hf.integrations.store_cache import resolve_store


def resident_set() -> int:
    """Bytes of this process's resident set, without what was freed."""
    gc.collect()
    accounting.return_freed_memory()
    return accounting.resident_set()


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Runs one model here."""
    transformers_logging.disable_progress_bar()
    source = arguments.model
    config = AutoConfig.from_pretrained(source)
    warm_up(config.model_type, getattr(torch, arguments.run.replace("sti", "float32")), elastic=arguments.run == "sti")
    options: dict[str, object] = {"dtype": getattr(torch, arguments.run)} if arguments.run != "sti" else {}
    if arguments.run == "sti":
        options["sti_config"] = sti_hf.STIConfig(
            target_latency=arguments.target_latency, preload_budget=arguments.preload_budget, seq_len=arguments.tokens
        )
    inputs = torch.randint(10, config.vocab_size, (arguments.runs, 1, arguments.tokens))
    before = resident_set()
    model = stock_class(config).from_pretrained(source, **options).eval()
    peak = 0
    with torch.no_grad():
        for tokens in inputs:
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
            peak = max(peak, accounting.resident_set())
    result = {"growth_MB": (resident_set() - before) / 1e6, "highest_growth_MB": (peak - before) / 1e6}
    if arguments.run == "sti":
        result |= {f"{name}_MB": size / 1e6 for name, size in model.sti.memory().items()}
        result["mean_bits"] = float(model.sti.plan.bits[model.sti.plan.bits > 0].mean())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint; it is sharded once into the cache")
    parser.add_argument("--target-latency", default="200ms")
    parser.add_argument("--preload-budget", default="1MB")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--run", choices=["sti", "float32", "bfloat16"], help=argparse.SUPPRESS)
    add_rate_option(parser)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(measure(arguments)))
        return
    store = resolve_store(arguments.model, sti_hf.STIConfig().quantizer)
    results = {}
    # Device profiles are of a disk rate: a cache of its own keeps this one's apart.
    with tempfile.TemporaryDirectory() as home, disk_rate(store.path, arguments.disk_rate, arguments.emulate) as how:
        os.environ["STI_HOME"] = home
        device_profile(store)
        for run in ("sti", "float32", "bfloat16"):
            source = str(store.path) if run == "sti" else arguments.model
            command = [sys.executable, "-m", "eval.bench_memory", *sys.argv[1:], "--model", source, "--run", run]
            results[run] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"disk: {how}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for run, result in results.items():
        print(f"{run:>8}: " + "  ".join(f"{name} {value:.1f}" for name, value in result.items()))
    print(f"growth against stock float32: 1/{results['float32']['growth_MB'] / results['sti']['growth_MB']:.0f}")


if __name__ == "__main__":
    main()

"""Measured against predicted latency of cold inferences, for several target latencies, and against the least that the
profile's IO and compute allow: how well they are pipelined.

    python eval/bench_latency.py --model CHECKPOINT_OR_STORE --disk-rate 200

*Live app* cold start: this process has run a tiny model of the same family, and the store's files are out of the page
cache before every inference. T is the time of one forward on a session whose preload buffer is filled.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

import sti_hf
from eval.cold_forwards import LATE, WARM_UP, running, timed_forward
from eval.disk import add_rate_option, disk_rate, evict
from eval.live_app import warm_up
from sti_hf.integrations.device_profiles import device_profile
from sti_hf.integrations.store_cache import resolve_store
from sti_hf.planning.reads import PieceTable


def pipeline_bound(store: sti_hf.ShardStore, profile: sti_hf.DeviceProfile, plan: sti_hf.ExecutionPlan) -> float:
    """Seconds that a plan's forward takes at least: the longest of all "IO up to layer l, compute from l on", with the
    embedding rows before it and what is computed after the layers behind it; or of all compute."""
    pieces = PieceTable(store.layouts).take(plan.layers)
    executed = list(plan.layers)
    streamed = pieces.needed(plan.bits[executed]) & ~plan.preloaded_pieces[executed].reshape(len(executed), -1)
    io = profile.io_seconds(*pieces.reads(streamed)).cumsum()
    compute = plan.timeline.compute_end - plan.timeline.compute_start
    workload = plan.workload
    rows = profile.embedding_seconds(workload.all_tokens, store.row_bytes, store.position_bytes(workload.tokens))
    waiting = np.maximum(io, profile.before_layers(workload))
    return float((waiting + compute[::-1].cumsum()[::-1]).max() + rows + profile.after_layers(workload))


def cold_inferences(store: sti_hf.ShardStore, target: float, arguments: argparse.Namespace) -> dict[str, object]:
    """Runs the cold inferences of one target latency."""
    config = sti_hf.STIConfig(
        target_latency=target,
        preload_budget=arguments.preload_budget,
        seq_len=arguments.tokens,
        submodels="any",
    )
    with running(store, config) as model:
        inputs = torch.randint(10, model.config.vocab_size, (WARM_UP + arguments.runs, 1, arguments.tokens))
        mask = torch.ones(1, arguments.tokens, dtype=torch.long)
        plan = model.sti.plan
        seconds, read = [], []
        for tokens in inputs:
            evict(store.path)
            seconds.append(timed_forward(model, {"input_ids": tokens, "attention_mask": mask}))
            read.append(model.sti.last_run.bytes_read)
    seconds, read = sorted(seconds[WARM_UP:]), read[WARM_UP:]
    return {
        "target_ms": target * 1e3,
        "feasible": plan.feasible,
        "submodel": plan.submodel,
        "mean_bits": float(plan.bits[plan.bits > 0].mean()),
        "predicted_ms": plan.predicted_latency * 1e3,
        "median_ms": median(seconds) * 1e3,
        "p95_ms": seconds[int(0.95 * len(seconds))] * 1e3,
        "median_over_predicted": median(seconds) / plan.predicted_latency,
        "median_over_bound": median(seconds) / pipeline_bound(store, device_profile(store), plan),
        f"share_under_{LATE}_T": sum(value < LATE * target for value in seconds) / len(seconds),
        "bytes_as_planned": set(read) == {plan.streamed_bytes},
        "streamed_MB": plan.streamed_bytes / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a store, or a checkpoint (sharded once into the cache)")
    parser.add_argument("--targets", type=float, nargs="+", default=[100, 200, 400], metavar="MS")
    parser.add_argument("--preload-budget", default="1MB")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    add_rate_option(parser)
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    store = resolve_store(arguments.model, sti_hf.STIConfig().quantizer)
    # Device profiles are of a disk rate: a cache of its own keeps this one's apart.
    with (
        tempfile.TemporaryDirectory() as home,
        disk_rate(store.path, arguments.disk_rate, arguments.emulate) as how,
    ):
        os.environ["STI_HOME"] = home
        warm_up(store.index.model_type, elastic=True)
        print(f"disk: {how}; {torch.get_num_threads()} threads; {arguments.tokens} tokens; {arguments.runs} runs")
        rows = [cold_inferences(store, target / 1e3, arguments) for target in arguments.targets]
    for row in rows:
        print(
            "  ".join(
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"disk": how, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()

"""Inferences while another process reads the same disk in bursts: how many keep T, without `refine` and with it, and
what that does to the answers.

    python -m eval.bench_refine --model CHECKPOINT_OR_STORE --glue FOLDER_OR_ID --disk-rate 200 --target-latency 300ms

Both ways take turns on the same sentences, each padded to `--tokens`, in one process that runs them as a live app
does, with the store's files out of the page cache. The disk's rate is shared with the bursts, so it is the kernel that
has to hold it: needs root, and `pip install "sti-hf[eval]"`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

import sti_hf
from eval.cold_forwards import LATE, WARM_UP, running
from eval.disk import EMULATED, add_rate_option, disk_rate, evict
from eval.disk_bursts import disk_bursts
from eval.live_app import warm_up
from eval.markdown import table
from eval.throttle_credit import spend_credit, write_ballast
from sti_hf.config import parse_seconds
from sti_hf.integrations.device_profiles import device_profile
from sti_hf.integrations.full_model import full_model
from sti_hf.integrations.store_cache import resolve_store
from sti_hf.integrations.tokenizer import load_tokenizer
from sti_hf.profiling.evaluation import Evaluation
from sti_hf.profiling.examples import load_examples
from sti_hf.profiling.metrics import load_metric, score
from sti_hf.profiling.tasks import GLUE_TASKS, Task, get_task


class Sample:
    """Sentences of a task, padded to one length, with what the full model says of them.

    - `inputs`: for every sentence, int64 `[1, tokens]` each.
    - `full`: logits float32 `[n, num_labels]` of the stock model in float32.
    """

    def __init__(self, store: sti_hf.ShardStore, task: Task, dataset: str | None, count: int, tokens: int) -> None:
        model, tokenizer = full_model(store), load_tokenizer(store)
        examples = load_examples(task, dataset, samples=count)
        self._evaluation = Evaluation.prepare(task, load_metric(task), examples, model, tokenizer, max_length=tokens)
        self.inputs = [
            dict(tokenizer(*texts, padding="max_length", truncation=True, max_length=tokens, return_tensors="pt"))
            for texts in examples.texts
        ]
        names = set(self._evaluation.batches[0].inputs)
        self.inputs = [{name: each[name] for name in each if name in names} for each in self.inputs]
        self.full = torch.empty(len(examples), task.num_labels)
        with torch.no_grad():
            for batch in self._evaluation.batches:
                self.full[batch.places] = model(**batch.inputs).logits

    def points(self, logits: Tensor) -> float:
        """The task's leading metric, in points, of answers `[n, num_labels]`."""
        evaluation = self._evaluation
        labels = evaluation.examples.labels
        return 100 * score(evaluation.task, evaluation.metric, logits, labels, evaluation.order).value

    def agreement(self, logits: Tensor) -> float:
        """Per cent of answers that are those of the full model."""
        return 100 * float((logits.argmax(1) == self.full.argmax(1)).float().mean())


@dataclass
class Way:
    """One way to run, and what was measured of it: an entry for every inference."""

    name: str
    model: Any
    seconds: list[float] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)
    lowest: list[int] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def run(self, inputs: dict[str, Tensor]) -> None:
        """One inference."""
        begun = time.perf_counter()
        output = self.model(**inputs)
        self.seconds.append(time.perf_counter() - begun)
        run = self.model.sti.last_run
        executed = run.bits[run.bits > 0]
        self.bits.append(float(executed.mean()))
        self.lowest.append(int(executed.min()))
        self.megabytes.append(run.bytes_read / 1e6)
        self.logits.append(output.logits[0].float())

    def summary(self, sample: Sample, target: float) -> dict[str, Any]:
        """The measurements in numbers."""
        plan, logits = self.model.sti.plan, torch.stack(self.logits)
        seconds = np.array(self.seconds)
        return {
            "name": self.name,
            "p50_ms": float(np.median(seconds)) * 1e3,
            "p95_ms": float(np.quantile(seconds, 0.95)) * 1e3,
            "share_in_time": float((seconds < LATE * target).mean()),
            "metric": sample.points(logits),
            "agreement": sample.agreement(logits),
            "mean_bits": float(np.mean(self.bits)),
            "lowest_bits": min(self.lowest),
            "mean_MB": float(np.mean(self.megabytes)),
            "planned_bits": float(plan.bits[plan.bits > 0].mean()),
            "planned_MB": plan.streamed_bytes / 1e6,
            "predicted_ms": plan.predicted_latency * 1e3,
            "seconds": self.seconds,
            "bits": self.bits,
        }


def take_turns(ways: Sequence[Way], sample: Sample, store: Path, ballast: Path, throttled: float | None) -> None:
    """Runs every way on every sentence, each time from a disk of which nothing is cached or saved up. Who comes first
    changes from sentence to sentence."""
    for way in ways:
        for inputs in sample.inputs[:WARM_UP]:
            way.model(**inputs)
    for index, inputs in enumerate(sample.inputs):
        for way in ways if index % 2 else reversed(ways):
            evict(store)
            if throttled is not None:
                spend_credit(ballast, throttled)
            way.run(inputs)


def markdown(rows: Sequence[dict[str, Any]], full: float, target: float) -> str:
    """The summaries as a table."""
    head = ["", "p50 (ms)", "p95 (ms)", f"under {LATE} T", "metric", "as fp32", "mean bits", "MB read"]
    lines = [
        [
            row["name"],
            f"{row['p50_ms']:.0f}",
            f"{row['p95_ms']:.0f}",
            f"{row['share_in_time']:.1%}",
            f"{row['metric']:.1f}",
            f"{row['agreement']:.1f} %",
            f"{row['mean_bits']:.2f} of {row['planned_bits']:.2f} planned",
            f"{row['mean_MB']:.1f} of {row['planned_MB']:.1f} planned",
        ]
        for row in rows
    ]
    lines.append(["fp32, all in memory", "", "", "", f"{full:.1f}", "100.0 %", "32", ""])
    return f"T = {target * 1e3:.0f} ms\n\n{table(head, lines)}"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a store, or a checkpoint (sharded once into the cache)")
    parser.add_argument("--task", choices=list(GLUE_TASKS), default="sst2")
    parser.add_argument("--glue", help="the task's data: a folder, or an id on the Hub (default: the task's own)")
    parser.add_argument("--target-latency", type=parse_seconds, default=0.3, metavar="T")
    parser.add_argument("--preload-budget", default="1MB", metavar="S")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument(
        "--inferences", type=int, default=200, help="sentences, one inference of each way for each (default 200)"
    )
    parser.add_argument("--burst-ms", type=float, default=50, help="length of a burst, on average; 0 for none")
    parser.add_argument("--rest-ms", type=float, default=150, help="length of the rest after it, on average")
    parser.add_argument("--json", type=Path, help="write everything measured here")
    parser.add_argument("--markdown", type=Path, help="write the table here, too")
    add_rate_option(parser)
    return parser.parse_args()


def main() -> None:
    arguments = options()
    transformers_logging.disable_progress_bar()
    store = resolve_store(arguments.model, sti_hf.STIConfig().quantizer)
    sample = Sample(store, get_task(arguments.task), arguments.glue, arguments.inferences, arguments.tokens)
    rows, settings = benchmark(arguments, store, sample)
    full = sample.points(sample.full)
    text = markdown(rows, full, arguments.target_latency)
    print("; ".join(f"{name}: {value}" for name, value in settings.items()))
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n")
    if arguments.json:
        content = {"settings": settings, "full_metric": full, "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=1))


def benchmark(
    arguments: argparse.Namespace, store: sti_hf.ShardStore, sample: Sample
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Runs both ways under bursts. Returns their summaries, and how they ran."""
    with ExitStack() as stack:
        # Device profiles are of a disk rate: a cache of its own keeps this one's apart. The disk is the store's.
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=store.path.parent)))
        write_ballast(work / "ballast")
        how = stack.enter_context(disk_rate(store.path, arguments.disk_rate, arguments.emulate))
        if EMULATED in how:
            raise SystemExit(
                "The kernel has to hold the rate for both processes: run this as root, without --emulate."
            )
        os.environ["STI_HOME"] = str(work)
        warm_up(store.index.model_type, elastic=True)
        device_profile(store)
        ways = []
        for name, refine in (("refine off", False), ("refine on", True)):
            config = sti_hf.STIConfig(
                target_latency=arguments.target_latency,
                preload_budget=arguments.preload_budget,
                seq_len=arguments.tokens,
                submodels="any",
                refine=refine,
            )
            ways.append(Way(name, stack.enter_context(running(store, config))))
        stack.enter_context(disk_bursts(work / "ballast", arguments.burst_ms / 1e3, arguments.rest_ms / 1e3))
        take_turns(ways, sample, store.path, work / "ballast", arguments.disk_rate)
        settings = {
            "model": store.path.name,
            "task": arguments.task,
            "disk": how,
            "bursts": f"{arguments.burst_ms:.0f} ms in {arguments.burst_ms + arguments.rest_ms:.0f} ms",
            "T": f"{arguments.target_latency * 1e3:.0f} ms",
            "S": arguments.preload_budget,
            "tokens": arguments.tokens,
            "inferences": f"{len(sample.inputs)} of each",
            "threads": torch.get_num_threads(),
        }
        return [way.summary(sample, arguments.target_latency) for way in ways], settings


if __name__ == "__main__":
    main()

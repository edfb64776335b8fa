"""Time to the first token of a text, time of each further one, and memory, of sti_hf and of what people use instead.

    python -m eval.bench_generation --model CHECKPOINT --store STORE --disk-rate 200

Each start is a process of its own, in interleaved rounds, as a *live app*: the process has written with a tiny model
of the same family by the same means, and only the model's files are out of memory. Time counts from the call of
`from_pretrained`. Needs root for disk rates.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

import sti_hf
from eval.accounting import disk_bytes, resident_set, return_freed_memory
from eval.disk import EMULATED, add_rate_option, disk_rate, evict
from eval.markdown import table
from eval.throttle_credit import spend_credit, write_ballast

STOCK, OFFLOADED, STI = "transformers-bf16", "accelerate-disk-bf16", "sti_hf"
TINY_SIZES = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
    **{"head_dim": 32, "intermediate_size": 128, "vocab_size": 99},
}
SETTINGS: dict[str, Any] = {"do_sample": False, "pad_token_id": 1, "eos_token_id": None}
BALLAST, CHECKPOINT, STORE = "ballast", "checkpoint", "store"


class Clock(BaseStreamer):
    """A streamer that notes when each token comes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """The prompt, at first, and then each token."""
        self.times.append(time.monotonic())

    def end(self) -> None:
        """The text is whole."""


def options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a language model's checkpoint, a folder")
    parser.add_argument("--store", type=Path, help="its store")
    parser.add_argument("--prompt", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--new", type=int, default=21, metavar="TOKENS")
    parser.add_argument("--targets", nargs="*", default=["1s:100ms:30MB"], metavar="T:TOKEN_T:S", help="of sti_hf")
    parser.add_argument("--competitors", nargs="*", default=[STOCK, OFFLOADED], choices=[STOCK, OFFLOADED])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "WORK"), help=argparse.SUPPRESS)
    parser.add_argument("--throttled", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write what was measured here, too")
    add_rate_option(parser)
    return parser.parse_args(arguments)


def prepare(chosen: argparse.Namespace, work: Path) -> None:
    """Writes the checkpoint in bfloat16, and tiny ones of its family with their stores."""
    config = AutoConfig.from_pretrained(chosen.model)
    config.update(TINY_SIZES)
    torch.manual_seed(0)
    tiny = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tiny.save_pretrained(work / f"tiny-{CHECKPOINT}-32")
    sti_hf.shard_checkpoint(work / f"tiny-{CHECKPOINT}-32", work / f"tiny-{STORE}")
    tiny.to(torch.bfloat16).save_pretrained(work / f"tiny-{CHECKPOINT}")
    model = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.bfloat16)
    model.save_pretrained(work / CHECKPOINT)
    (work / STORE).symlink_to(chosen.store.resolve())


def load(name: str, work: Path, prefix: str = "") -> Any:
    """The model of a competitor, as an app loads it."""
    if not name.startswith(STI):
        offload = {"device_map": {"": "disk"}, "offload_folder": work / f"{prefix}offload"}
        more: dict[str, Any] = offload if name == OFFLOADED else {}
        return AutoModelForCausalLM.from_pretrained(work / f"{prefix}{CHECKPOINT}", dtype=torch.bfloat16, **more)
    _, target, of_token, budget = name.split("|")
    config = {"target_latency": target, "target_token_latency": of_token, "preload_budget": budget, "seq_len": 64}
    return AutoModelForCausalLM.from_pretrained((work / f"{prefix}{STORE}").resolve(), sti_config=config)


def written(model: Any, prompt: torch.Tensor, new: int) -> list[float]:
    """`time.monotonic` at each of the new tokens."""
    clock = Clock()
    with torch.no_grad():
        model.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=clock, max_new_tokens=new, **SETTINGS)
    return clock.times[1:]


def measure(name: str, work: Path, chosen: argparse.Namespace) -> dict[str, float]:
    """One start of a competitor, in this process: seconds and bytes."""
    random = torch.Generator().manual_seed(1)
    written(load(name, work, "tiny-"), torch.randint(3, 99, (1, chosen.prompt), generator=random), 3)
    files = (work / STORE).resolve() if name.startswith(STI) else work / CHECKPOINT
    os.sync()
    evict(files, work / "offload")
    if chosen.throttled is not None:
        spend_credit(work / BALLAST, chosen.throttled)
    return_freed_memory()
    memory, read, begun = resident_set(), disk_bytes(), time.monotonic()
    model = load(name, work)
    prompt = torch.randint(3, model.config.vocab_size, (1, chosen.prompt), generator=random)
    times = written(model, prompt, chosen.new)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    found = {
        "first": times[0] - begun,
        "token": median(gaps[1:]),
        "memory": resident_set() - memory,
        "read": disk_bytes() - read,
    }
    if name.startswith(STI):
        generation = model.sti.last_generation
        found |= {
            "predicted_first": generation.prompt.predicted,
            "predicted_token": median(step.predicted for step in generation.steps[1:]),
            "bits": float(generation.prompt.bits[generation.prompt.bits > 0].mean()),
            "token_bits": float(generation.steps[-1].bits[generation.steps[-1].bits > 0].mean()),
        }
    return found


def started(name: str, work: Path, chosen: argparse.Namespace, throttled: float | None) -> dict[str, float]:
    """One start in a process of its own."""
    command = [sys.executable, "-m", "eval.bench_generation", "--measure", name, str(work)]
    command += ["--prompt", str(chosen.prompt), "--new", str(chosen.new)]
    if throttled is not None:
        command += ["--throttled", str(throttled)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{name} failed:\n{finished.stderr}")
    measured: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return measured


def rows_of(chosen: argparse.Namespace, work: Path, how: str) -> list[dict[str, Any]]:
    """Medians of interleaved rounds, a row a competitor."""
    throttled = None if EMULATED in how else chosen.disk_rate
    names = [*("|".join((STI, *each.split(":"))) for each in chosen.targets), *chosen.competitors]
    for name in names:  # profiles the device and plans, once
        started(name, work, chosen, None)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(chosen.rounds):
        for name in names:
            found[name].append(started(name, work, chosen, throttled))
    return [
        {"name": name, **{key: median(run[key] for run in runs) for key in runs[0]}} for name, runs in found.items()
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table; those of others with how many times as long the first one of sti_hf takes less."""
    ours = rows[0]
    head = [
        "",
        "first token (ms)",
        "times",
        "further token (ms)",
        "memory (MB)",
        "read (MB)",
        "predicted (ms)",
        "bits",
    ]
    return table(
        head,
        [
            [
                row["name"].replace("|", ", "),
                f"{row['first'] * 1e3:.0f}",
                f"{row['first'] / ours['first']:.1f}",
                f"{row['token'] * 1e3:.0f}",
                f"{row['memory'] / 1e6:.0f}",
                f"{row['read'] / 1e6:.0f}",
                f"{row['predicted_first'] * 1e3:.0f}, {row['predicted_token'] * 1e3:.0f}" if "bits" in row else "",
                f"{row['bits']:.1f}, {row['token_bits']:.1f}" if "bits" in row else "",
            ]
            for row in rows
        ],
    )


def main(arguments: list[str] | None = None) -> None:
    chosen = options(arguments)
    transformers_logging.disable_progress_bar()
    if chosen.measure:
        name, work = chosen.measure
        print(json.dumps(measure(name, Path(work), chosen)))
        return
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=chosen.store.parent)))
        os.environ["STI_HOME"] = str(work / "home")
        write_ballast(work / BALLAST)
        prepare(chosen, work)
        how = stack.enter_context(disk_rate(work, chosen.disk_rate, chosen.emulate))
        rows = rows_of(chosen, work, how)
    title = f"{chosen.model.name}, prompt of {chosen.prompt} tokens; disk: {how}; {chosen.rounds} rounds"
    print(f"{title}\n\n{markdown(rows)}")
    if chosen.json:
        chosen.json.write_text(json.dumps({"settings": title, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

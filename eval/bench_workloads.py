"""Measured against predicted forwards, for batches and lengths of texts and for batches of images.

    python -m eval.bench_workloads --model CHECKPOINT

*Warm*: all weights are preloaded. *Cold*: nothing is, and the store's files are out of the page cache before every
forward. All weights have `--bits` bits, so that no T decides anything. The forwards of all workloads take turns. In
every round the device is profiled anew just before them, and the models are loaded anew: where a machine's speed
drifts by minutes, a profile is held against the forwards that follow it. Of all rounds the medians are told.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging as transformers_logging

import sti_hf
from eval.cold_forwards import WARM_UP, running, timed_forward
from eval.disk import add_rate_option, disk_rate, evict
from eval.markdown import table
from sti_hf.integrations.device_profiles import device_profile, kept_profile_path
from sti_hf.integrations.store_cache import resolve_store
from sti_hf.model import get_architecture
from sti_hf.planning import Workload

HEAD = 64
"""Width of an attention head."""

TEXTS = ("1x64", "1x128", "8x64", "1x512")
IMAGES = (1, 8)
CLOSE = 0.15
"""Share of the prediction by which the median may be off."""

MODES: dict[str, dict[str, Any]] = {
    "warm": {"strategy": "preload"},
    "cold": {"strategy": "std_pipeline", "preload_budget": 0},
}


@dataclass
class Case:
    """A workload of a store's model, warm or cold, and what its forwards took."""

    what: str
    store: sti_hf.ShardStore
    workload: Workload
    mode: str
    model: Any = None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    predicted: float = 0.0

    def open(self, stack: ExitStack, bits: int) -> None:
        """Loads the model, with the plan for this workload, for one round."""
        self.seconds = []
        config = sti_hf.STIConfig(
            target_latency=60.0,
            seq_len=self.workload.tokens,
            batch_size=self.workload.batch,
            fidelity=bits,
            **MODES[self.mode],
        )
        self.model = stack.enter_context(running(self.store, config))
        architecture = get_architecture(self.model.config)
        self.inputs = architecture.example_inputs(self.model.config, self.workload.batch, self.workload.tokens)

    def run(self) -> None:
        """One forward."""
        if self.mode == "cold":
            evict(self.store.path)
        self.seconds.append(timed_forward(self.model, self.inputs))
        self.predicted = self.model.sti.last_run.predicted if len(self.seconds) > WARM_UP else 0.0

    def row(self) -> dict[str, Any]:
        """Its row of the table, milliseconds."""
        measured = median(self.seconds[WARM_UP:])
        return {
            "what": self.what,
            "mode": self.mode,
            "batch": self.workload.batch,
            "tokens": self.workload.tokens,
            "predicted_ms": self.predicted * 1e3,
            "median_ms": measured * 1e3,
            "fastest_ms": min(self.seconds[WARM_UP:]) * 1e3,
            "off": measured / self.predicted - 1,
        }


def text_workload(text: str) -> Workload:
    """Of "8x64": 8 texts of 64 tokens."""
    batch, _, tokens = text.partition("x")
    return Workload(int(tokens), int(batch))


def options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="checkpoint or store of a text encoder (default: BERT, random, sized as below)"
    )
    parser.add_argument("--layers", type=int, default=12, help="of the models with random weights (default: 12)")
    parser.add_argument("--hidden", type=int, default=384, help="size of these (default: 384)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels, in patches of 16 (default: 224)")
    parser.add_argument("--texts", nargs="*", default=TEXTS, help=f"batch x tokens (default: {' '.join(TEXTS)})")
    parser.add_argument("--images", type=int, nargs="*", default=IMAGES, help="batches (default: 1 8)")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--runs", type=int, default=15, help="forwards of a case in a round (default: 15)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    add_rate_option(parser)
    return parser.parse_args(arguments)


def random_models(chosen: argparse.Namespace) -> dict[str, PreTrainedModel]:
    """The models with random weights that are asked for, by their names."""
    sizes = {
        "num_hidden_layers": chosen.layers,
        "hidden_size": chosen.hidden,
        "num_attention_heads": max(1, chosen.hidden // HEAD),
        "intermediate_size": 4 * chosen.hidden,
    }
    torch.manual_seed(0)
    made: dict[str, PreTrainedModel] = {}
    if chosen.texts and not chosen.model:
        made["BERT"] = BertForSequenceClassification(BertConfig(**sizes))
    if chosen.images:
        made["ViT"] = ViTForImageClassification(ViTConfig(**sizes, image_size=chosen.image_size, patch_size=16))
    return made


def stores_of(chosen: argparse.Namespace, work: Path) -> dict[str, sti_hf.ShardStore]:
    """The stores to run, by the names of their models; sharded in `work` but for a store that is given."""
    stores = {}
    if chosen.texts and chosen.model:
        stores[Path(chosen.model).name] = resolve_store(chosen.model, "gobo")
    for name, model in random_models(chosen).items():
        model.save_pretrained(work / name)
        stores[name] = sti_hf.shard_checkpoint(work / name, work / f"{name}-store", quantizer="gobo")
    return stores


def cases_of(chosen: argparse.Namespace, stores: dict[str, sti_hf.ShardStore]) -> list[Case]:
    """All that is measured."""
    cases = []
    for name, store in stores.items():
        config = AutoConfig.from_pretrained(store.path)
        architecture = get_architecture(config)
        workloads = list(map(text_workload, chosen.texts))
        if architecture.exact_tokens:
            workloads = [Workload(architecture.longest_input(config), batch) for batch in chosen.images]
        cases += [Case(name, store, workload, mode) for workload in workloads for mode in MODES]
    return cases


def profiled(stores: dict[str, sti_hf.ShardStore]) -> dict[str, str]:
    """Profiles the device for each store; says on which path, and where the machine was too busy for it."""
    found = {}
    for name, store in stores.items():
        profile = device_profile(store, measure=True)
        kept = kept_profile_path(store, "auto")
        busy = ", MACHINE BUSY" if kept is None or "busy" in kept.stem else ""
        found[name] = f"{profile.compute_dtype} {profile.gemm}{busy}"
    return found


def measured(cases: list[Case], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of all cases in one round, whose forwards take turns."""
    with ExitStack() as stack, torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* than predicted")  # that is a row of the table here
        for case in cases:
            case.open(stack, chosen.bits)
        for _ in range(WARM_UP + chosen.runs):
            for case in cases:
                case.run()
    return [case.row() for case in cases]


def medians(rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of all rounds as one: of each number the median. `off` is that of the rounds, each by its profile."""
    return [
        {
            name: median(row[name] for row in rows) if isinstance(value, float) else value
            for name, value in rows[0].items()
        }
        for rows in zip(*rounds)
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    head = [
        "model",
        "",
        "batch × tokens",
        "predicted (ms)",
        "median (ms)",
        "fastest (ms)",
        "off",
        f"within {CLOSE:.0%}",
    ]
    return table(
        head,
        [
            [
                *(row["what"], row["mode"], f"{row['batch']} × {row['tokens']}"),
                *(f"{row[name]:.1f}" for name in ("predicted_ms", "median_ms", "fastest_ms")),
                *(f"{row['off']:+.0%}", "yes" if abs(row["off"]) <= CLOSE else "NO"),
            ]
            for row in rows
        ],
    )


def main(arguments: list[str] | None = None) -> None:
    chosen = options(arguments)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # Device profiles are of a disk rate, and of this hour: in a cache of their own.
        os.environ["STI_HOME"] = str(work / "home")
        stores = stores_of(chosen, work)
        with disk_rate(work, chosen.disk_rate, chosen.emulate) as how:
            cases, rounds, paths = cases_of(chosen, stores), [], []
            for _ in range(chosen.rounds):
                paths.append(profiled(stores))
                rounds.append(measured(cases, chosen))
            rows = medians(rounds)
    runs = f"{chosen.rounds} rounds of {chosen.runs} runs"
    title = f"disk: {how}; {torch.get_num_threads()} threads; {chosen.bits} bits; {runs}; {paths}"
    print(f"{title}\n\n{markdown(rows)}")
    if chosen.json:
        chosen.json.write_text(json.dumps({"settings": title, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

"""Language models: perplexity and next tokens, by fidelity and by what `sti` makes of T and S, run from shards.

    python -m eval.run_lm --store STORE --texts FILE --disk-rate 200 --emulate --json language.json

Every row is a model that `AutoModelForCausalLM.from_pretrained` loads from the store, asked for windows of the text
one after the other. It is compared with the full model, a stock one in float32, on the same windows: perplexity,
KL(full || row) of the next token, and how often the likeliest token is the same. Windows are short, and each begins
without a past: compare a perplexity with the full model's beside it, not with published ones. What a forward has read
of shards is counted, and held to what its plan says.

A T that is not kept is so here because the whole model runs, unless the store's importance profile has measured
submodels that lose at most `max_loss`: plans are those that a user gets.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from eval.cold_forwards import expecting_misses
from eval.command import byte_count, publish, run_quietly, seconds
from eval.disk import add_rate_option, disk_rate
from eval.glue_runs.circumstances import command_line, machine
from eval.glue_runs.settings import APART, ROOM, SHORTEST
from eval.markdown import bullets, table
from eval.own_cache import own_cache
from sti_hf import STIConfig
from sti_hf.config import COMPUTE_DTYPES
from sti_hf.integrations.device_profiles import device_profile
from sti_hf.integrations.full_model import full_model
from sti_hf.integrations.profiled_tasks import check_language_model
from sti_hf.integrations.store_planner import plan_store
from sti_hf.integrations.tokenizer import load_tokenizer
from sti_hf.planning import ExecutionPlan, Workload
from sti_hf.planning.baselines import BASELINES
from sti_hf.profiling.examples import Batch
from sti_hf.profiling.language import WINDOW, WINDOWS, LanguageEvaluation, check_causal, load_windows, window_batches
from sti_hf.profiling.next_tokens import Remembered, kl_divergence
from sti_hf.shards.layout import FIDELITIES, FULL
from sti_hf.shards.store import ShardStore

TARGET_BITS = (2, 3, 4)
"""Fidelities of a pipeline whose latencies are the usual targets."""


@dataclass(frozen=True)
class Quality:
    """What a model says of the windows. `kl` is in nats a token, `agreement` the per cent of positions at which the
    likeliest next token is the full model's, `accuracy` at which it is the text's."""

    perplexity: float
    ratio: float
    kl: float
    agreement: float
    accuracy: float


@dataclass(frozen=True)
class Row:
    """One model run from shards. `bytes_read` of shards a forward, the median, beside `preload_bytes` that are held;
    `as_planned`: each forward read just what the plan says. T seconds, S bytes, None for a baseline."""

    strategy: str
    fidelity: int | None
    target: float | None
    preload_budget: int | None
    feasible: bool | None
    submodel: tuple[int, int]
    mean_bits: float
    vocabulary_bits: float
    bytes_read: float
    preload_bytes: int
    as_planned: bool
    quality: Quality


class Reference:
    """The full model's answers for some windows, each a batch.

    Raises `ValueError` with one sentence where the store has no causal language model, no full weights, or no
    tokenizer, or the text will not do.
    """

    def __init__(self, store: ShardStore, file: Path, tokens: int, samples: int) -> None:
        check_language_model(AutoConfig.from_pretrained(store.path))
        windows = load_windows(file, load_tokenizer(store), tokens=tokens, samples=samples)
        model = full_model(store)
        model.config.use_cache = False
        check_causal(model)
        self.batches: list[Batch] = window_batches(windows, 1)
        self.evaluation = LanguageEvaluation.prepare(model, self.batches)
        self._full = Remembered(model, [batch.inputs for batch in self.batches])

    def quality(self, model: Any, lines: list[Any]) -> Quality:
        """Of a model that runs from shards; what each forward did is put into `lines`."""
        kl, same = [], []

        def logits_of(index: int) -> torch.Tensor:
            logits: torch.Tensor = model(**self.batches[index].inputs, use_cache=False).logits.float()
            lines.append(model.sti.last_run)
            full = self._full.logits(index)
            kl.append(float(kl_divergence(full, logits).mean()))
            same.append(float((full.argmax(-1) == logits.argmax(-1)).float().mean()))
            return logits

        metrics = self.evaluation.score(logits_of).metrics
        count = len(self.batches)
        return Quality(
            perplexity=metrics["perplexity"],
            ratio=metrics["perplexity"] / self.evaluation.full_perplexity,
            kl=max(0.0, sum(kl) / count),
            agreement=100 * sum(same) / count,
            accuracy=100 * metrics["next_token_accuracy"],
        )


def measured(store: ShardStore, config: STIConfig, reference: Reference) -> Row:
    """The row of what the store's model does with this configuration."""
    with expecting_misses(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* than predicted")  # times are no matter here
        model = AutoModelForCausalLM.from_pretrained(store.path, sti_config=config)
        try:
            plan: ExecutionPlan = model.sti.plan
            strips: ExecutionPlan | None = None if plan.is_full else model.sti.vocabulary_plan
            model(**reference.batches[0].inputs)  # fills the preload buffer
            lines: list[Any] = []
            quality = reference.quality(model, lines)
        finally:
            model.sti.close()
    ours = config.strategy == "sti"
    return Row(
        strategy=config.strategy,
        fidelity=config.fidelity,
        target=config.target_latency if ours else None,
        preload_budget=config.preload_budget if ours else None,
        feasible=plan.feasible if ours else None,
        submodel=plan.submodel,
        mean_bits=float(plan.bits[plan.bits > 0].mean()),
        vocabulary_bits=FULL if strips is None else float(strips.bits.mean()),
        bytes_read=median(line.bytes_read for line in lines),
        preload_bytes=sum(each.preload_bytes for each in (plan, strips) if each is not None),
        as_planned={line.bytes_read for line in lines}
        == {sum(each.streamed_bytes for each in (plan, strips) if each is not None)},
        quality=quality,
    )


def configs_of(store: ShardStore, options: argparse.Namespace) -> list[STIConfig]:
    """All that is asked for: the baseline at its fidelities, then `sti` for every T and S."""
    common = {"seq_len": options.seq_len, "compute_dtype": options.compute_dtype, "importance": options.importance}
    baselines = [
        STIConfig(SHORTEST, 0, options.strategy, bits, submodels="measured", **common) for bits in options.fidelities
    ]
    targets = options.targets or usual_targets(store, options)
    ours = [STIConfig(target, budget, **common) for target in targets for budget in options.preload_budgets]
    return baselines + ours


def usual_targets(store: ShardStore, options: argparse.Namespace) -> list[float]:
    """What a pipeline takes at the fidelities of `TARGET_BITS`, and a little more: seconds, ascending."""
    profile = device_profile(store, options.compute_dtype)
    workload = Workload(Workload.bucket(options.seq_len))
    config = STIConfig(SHORTEST, 0, "std_pipeline", 2, importance="default", compute_dtype=options.compute_dtype)
    found: list[float] = []
    strips = store.vocabulary
    whole = 1 if strips is None else 1 + strips.grid.weights / store.grid.weights
    for bits in TARGET_BITS:
        config.fidelity = bits
        latency = ROOM * whole * plan_store(store, profile, config, workload).predicted_latency
        if not found or latency > APART * found[-1]:
            found.append(latency)
    return found


def report(title: str, facts: dict[str, str], rows: Sequence[Row]) -> str:
    """Markdown: how it ran, and a row for each model."""
    head = (
        "model",
        "n × m",
        "bits, of the vocabulary",
        "perplexity",
        "ratio to full",
        "KL (nats)",
        "same token",
        "read (MB)",
        "held (MB)",
    )
    lines = [
        [
            _name(row),
            "{} × {}".format(*row.submodel),
            f"{row.mean_bits:.2f}, {row.vocabulary_bits:.2f}",
            f"{row.quality.perplexity:.4g}",
            f"{row.quality.ratio:.3f}",
            f"{row.quality.kl:.4f}",
            f"{row.quality.agreement:.1f} %",
            f"{row.bytes_read / 1e6:.1f}{'' if row.as_planned else ' NOT AS PLANNED'}",
            f"{row.preload_bytes / 1e6:.1f}",
        ]
        for row in rows
    ]
    return "\n\n".join([f"# {title}", bullets(facts), table(head, lines)])


def _name(row: Row) -> str:
    if row.target is None or row.preload_budget is None:
        return f"{row.strategy}, {'full' if row.fidelity == FULL else f'{row.fidelity} bits'}"
    late = "" if row.feasible else ", T missed"
    target = f"{row.target * 1e3:.0f}" if row.target >= 0.1 else f"{row.target * 1e3:.3g}"
    return f"sti, T = {target} ms, S = {row.preload_budget / 1e6:g} MB{late}"


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="of a causal language model, with full weights")
    parser.add_argument("--texts", required=True, type=Path, metavar="FILE", help="running text in UTF-8")
    parser.add_argument("--samples", type=int, default=WINDOWS, metavar="N", help=f"windows (default: {WINDOWS})")
    parser.add_argument("--seq-len", type=int, default=WINDOW, metavar="TOKENS", help=f"of each (default: {WINDOW})")
    parser.add_argument("--strategy", choices=BASELINES, default="std_pipeline", help="the baseline (std_pipeline)")
    parser.add_argument("--fidelities", nargs="+", type=int, choices=FIDELITIES, default=FIDELITIES, help="of it")
    parser.add_argument(
        "--targets", nargs="+", type=seconds, metavar="T", help="default: what it takes at 2, 3, 4 bits"
    )
    parser.add_argument(
        "--preload-budgets", nargs="+", type=byte_count, metavar="S", default=[0, 10**7], help="default: 0 10MB"
    )
    parser.add_argument("--importance", metavar="NAME", help="default: the store's own default")
    parser.add_argument("--compute-dtype", choices=COMPUTE_DTYPES, default="auto")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    parser.add_argument("--markdown", type=Path, help="write what is printed here, too")
    add_rate_option(parser)
    parser.set_defaults(command=command_line("eval.run_lm", arguments))
    return parser, parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Measures all rows and prints them."""
    store = ShardStore.open(options.store)
    reference = Reference(store, options.texts, options.seq_len, options.samples)
    with own_cache(), disk_rate(store.path, options.disk_rate, options.emulate) as how:
        rows = [measured(store, config, reference) for config in configs_of(store, options)]
        profile = device_profile(store, options.compute_dtype)
    evaluation = reference.evaluation
    facts = {
        "store": f"{store.path.name}, quantizer {store.index.quantizer}",
        "text": f"{options.texts.name}, {len(reference.batches)} windows of {options.seq_len} tokens",
        "full model": f"perplexity {evaluation.full_perplexity:.4g} (stock, float32)",
        "disk": how,
        "compute": f"{profile.compute_dtype} ({profile.gemm}), {torch.get_num_threads()} threads",
        "machine": machine(),
        "command": f"`{options.command}`",
    }
    publish(report(f"{store.path.name} as a language model", facts, rows), options.markdown)
    if options.json:
        content = {
            "facts": facts,
            "full_perplexity": evaluation.full_perplexity,
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(content, indent=1))


def main(arguments: Sequence[str] | None = None) -> None:
    parser, options = parse(arguments)
    run_quietly(parser, options, run)


if __name__ == "__main__":
    main()

"""The `sti` command. `optimum-cli sti` has the same verbs, from the same definition."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.progress import Progress
from transformers.utils import logging as transformers_logging

from sti_hf.config import ALLOCATORS, COMPUTE_DTYPES, STRATEGIES, STIConfig
from sti_hf.drawing import draw_plan, draw_run, terminal
from sti_hf.integrations.checkpoint import TOKENIZER_FILES, shard_checkpoint
from sti_hf.integrations.session import device_profile, plan_store, profile_path
from sti_hf.native import StreamError
from sti_hf.planning import DeviceProfile
from sti_hf.runtime.session import bucket_of
from sti_hf.shards.layout import FIDELITIES
from sti_hf.shards.quantizers import DEFAULT_QUANTIZER, QUANTIZERS
from sti_hf.shards.store import ShardStore, is_store, store_defaults

USER_MISTAKE = 2
DTYPE_HELP = "what to compute in; auto: whatever is the fastest here"
PIPELINE_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
}
"""Task of `sti run` by the ending of the model class; every other class gives embeddings."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_MISTAKE, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, or 2 with one line for a user's mistake."""
    parser = _Parser("sti", description="Run transformers cold, in time, from little memory.")
    add_verbs(parser)
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Runs the verb that was parsed."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"sti: warning: {message}", file=sys.stderr)
            status: int = options.verb(options)
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, StreamError, StrictDataclassError) as error:
        print(f"sti: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print("sti: interrupted", file=sys.stderr)
        return 130


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """Defines the verbs and their options on `parser`."""
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)

    shard = _verb(verbs, "shard", shard_verb, "shard a checkpoint (a folder or a Hub id) into a store")
    shard.add_argument("source", metavar="SRC", help="a checkpoint's folder, or its id on the Hub")
    shard.add_argument("store", metavar="STORE", type=Path, help="the folder to make")
    shard.add_argument(
        "--quantizer", choices=sorted(QUANTIZERS), default=DEFAULT_QUANTIZER, help=f"default: {DEFAULT_QUANTIZER}"
    )
    shard.add_argument("--no-full", action="store_true", help="leave the 32-bit weights out")

    profile = _verb(verbs, "profile-device", profile_device_verb, "measure what reading and computing cost here")
    _add_store(profile)
    profile.add_argument("--compute-dtype", choices=COMPUTE_DTYPES, default="auto", help=DTYPE_HELP)

    plan = _verb(verbs, "plan", plan_verb, "show what would run for a latency and a preload buffer")
    _add_config_options(plan)

    run_ = _verb(verbs, "run", run_verb, "run texts through a store")
    _add_config_options(run_)
    run_.add_argument("texts", metavar="TEXT", nargs="+")

    verify = _verb(verbs, "verify", verify_verb, "read a whole store and check every checksum")
    _add_store(verify)


def _verb(verbs: Any, name: str, function: Any, help: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.set_defaults(verb=function)
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    return parser


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", type=Path, help="a folder that `sti shard` made")


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    """The fields of STIConfig; what is not given is the store's default."""
    _add_store(parser)
    parser.add_argument("--target-latency", metavar="T", help="such as 200ms")
    parser.add_argument("--preload-budget", metavar="S", help="such as 1MB")
    parser.add_argument("--seq-len", metavar="TOKENS", type=int, help="tokens of the input to plan for")
    parser.add_argument("--strategy", choices=STRATEGIES, help="sti, or one of the paper's baselines")
    parser.add_argument("--fidelity", type=int, choices=FIDELITIES, help="bits of all shards, for a baseline")
    parser.add_argument("--allocator", choices=ALLOCATORS, help="what chooses the fidelities; two_pass is the paper's")
    parser.add_argument("--compute-dtype", choices=COMPUTE_DTYPES, help=DTYPE_HELP)
    parser.add_argument("--strict", action="store_true", default=None, help="fail if T cannot be met")


def _config(options: argparse.Namespace) -> STIConfig:
    """The store's defaults, with what the command line says instead."""
    if not is_store(options.store):
        ShardStore.open(options.store)  # raises what is wrong with it
    fields = ("target_latency", "preload_budget", "seq_len", "strategy", "fidelity", "allocator", "compute_dtype")
    given = {name: getattr(options, name) for name in (*fields, "strict") if getattr(options, name) is not None}
    return STIConfig.coerce({**store_defaults(options.store), **given})


def _show_progress(options: argparse.Namespace) -> None:
    if sys.stderr.isatty() and not options.json:
        transformers_logging.enable_progress_bar()


def _profile(options: argparse.Namespace, store: ShardStore, dtype: str, measure: bool = False) -> DeviceProfile:
    """The device profile, with a progress bar where it must be measured."""
    _show_progress(options)
    profile = device_profile(store, dtype, measure=measure)
    transformers_logging.disable_progress_bar()
    return profile


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, default=float))  # scores are NumPy's


def shard_verb(options: argparse.Namespace) -> int:
    """`sti shard`."""
    _show_progress(options)
    begun = time.perf_counter()
    store = shard_checkpoint(options.source, options.store, quantizer=options.quantizer, full=not options.no_full)
    seconds = time.perf_counter() - begun
    size = sum(store.index.files.values())
    if options.json:
        _print_json(
            {
                "store": str(options.store),
                "model_type": store.index.model_type,
                "layers": store.grid.layers,
                "slices": store.grid.slices,
                "fidelities": store.fidelities,
                "quantizer": store.index.quantizer,
                "bytes": size,
                "bytes_by_fidelity": {bits: store.shard_bytes(bits) for bits in store.fidelities},
                "seconds": seconds,
            }
        )
        return 0
    console = terminal()
    console.print(
        f"{options.store}: {store.grid.layers} x {store.grid.slices} shards, {size / 1e6:.1f} MB in {seconds:.1f} s"
    )
    for bits in store.fidelities:
        console.print(f"  all shards at {bits:>2} bits: {store.shard_bytes(bits) / 1e6:7.1f} MB")
    return 0


def profile_device_verb(options: argparse.Namespace) -> int:
    """`sti profile-device`."""
    store = ShardStore.open(options.store)
    profile = _profile(options, store, options.compute_dtype, measure=True)
    if options.json:
        print(profile.to_json())
        return 0
    console = terminal()
    console.print(
        f"reading: {profile.bytes_per_second / 1e6:.0f} MB/s, {profile.request_seconds * 1e6:.0f} us a request\n"
        f"compute: {profile.compute_dtype}, {profile.gemm} GEMM; one layer, {profile.widths[-1]} slices:"
    )
    for tokens, row, fixed in zip(profile.tokens, profile.layer_seconds, profile.fixed_seconds):
        console.print(f"  {tokens:>4} tokens: {row[-1] * 1e3:7.2f} ms (outside the layers {fixed * 1e3:.2f} ms)")
    weights = store.grid.slices * store.grid.slice_weights
    times = "  ".join(f"{bits}: {each * weights * 1e3:.2f}" for bits, each in profile.decompress_seconds.items())
    console.print(f"decompressing a layer, ms by bits: {times}")
    console.print(f"kept in {profile_path(store, options.compute_dtype)}")
    return 0


def plan_verb(options: argparse.Namespace) -> int:
    """`sti plan`."""
    config = _config(options)
    store = ShardStore.open(options.store)
    profile = _profile(options, store, config.compute_dtype)
    plan = plan_store(store, profile, config, bucket_of(config.seq_len))
    if config.strict and not plan.feasible:
        raise ValueError(
            f"No plan meets {plan.target_latency * 1e3:.0f} ms: the smallest takes about "
            f"{plan.predicted_latency * 1e3:.0f} ms."
        )
    if options.json:
        print(plan.to_json())
    else:
        draw_plan(terminal(), plan)
    return 0


def run_verb(options: argparse.Namespace) -> int:
    """`sti run`."""
    from transformers import AutoConfig, AutoTokenizer, pipeline

    build_pipeline: Any = pipeline
    sti_config = _config(options)
    store = ShardStore.open(options.store)
    if not any((options.store / name).exists() for name in TOKENIZER_FILES):
        raise ValueError(f"{options.store} has no tokenizer; put the checkpoint's tokenizer files into it.")
    tokenizer = AutoTokenizer.from_pretrained(options.store)
    config = AutoConfig.from_pretrained(options.store)
    if options.seq_len is None:
        tokens = max(len(tokenizer(text)["input_ids"]) for text in options.texts)
        sti_config = sti_config.replaced(seq_len=min(tokens, config.max_position_embeddings))
    _profile(options, store, sti_config.compute_dtype)
    architecture = (config.architectures or [""])[0]
    task = next((t for ending, t in PIPELINE_TASKS.items() if architecture.endswith(ending)), "feature-extraction")
    pipe = build_pipeline(
        task, model=str(options.store), tokenizer=tokenizer, model_kwargs={"sti_config": sti_config}, device="cpu"
    )
    try:
        answers = [_answer(pipe, text) for text in options.texts]
        if options.json:
            _print_json({"task": task, "answers": answers, "memory": pipe.model.sti.memory()})
        else:
            draw_run(terminal(), task, answers, pipe.model.sti)
    finally:
        pipe.model.sti.close()
    return 0


def _answer(pipe: Any, text: str) -> dict[str, Any]:
    """What the pipeline says of a text, and what it took. Raises `ValueError` for a text that it cannot take."""
    positions = pipe.model.base_model.embeddings.position_embeddings
    padding = positions.padding_idx
    longest = positions.num_embeddings - (0 if padding is None else padding + 1)
    tokens = len(pipe.tokenizer(text)["input_ids"])
    if tokens > longest:
        raise ValueError(f"A text has {tokens} tokens, and this model takes {longest}; shorten it.")
    if pipe.task == "fill-mask" and pipe.tokenizer.mask_token not in text:
        raise ValueError(f"This model fills in words: write {pipe.tokenizer.mask_token} where one is missing.")
    output = pipe(text)
    if pipe.task == "feature-extraction":
        output = [sum(column) / len(column) for column in zip(*output[0])]
    timeline = pipe.model.sti.last_run
    return {"text": text, "output": output, "seconds": timeline.total, "bytes_read": timeline.bytes_read}


def verify_verb(options: argparse.Namespace) -> int:
    """`sti verify`."""
    store = ShardStore.open(options.store)
    total = sum(store.index.files.values())
    with Progress(
        console=Console(stderr=True), disable=options.json or not sys.stderr.isatty(), transient=True
    ) as bar:
        task = bar.add_task("Verifying", total=total)
        damage = store.verify(lambda read: bar.update(task, completed=read))
    if options.json:
        _print_json({"intact": not damage, "bytes": total, "damage": [vars(piece) for piece in damage]})
    elif not damage:
        print(f"{options.store} is intact: {total / 1e6:.1f} MB checked.")
    for piece in [] if options.json else damage:
        print(f"damaged: {piece.file} at {piece.offset}: {piece.what}")
    return USER_MISTAKE if damage else 0


if __name__ == "__main__":
    sys.exit(main())

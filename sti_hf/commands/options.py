"""What several verbs share: their options, and what they make of them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from sti_hf.config import ALLOCATORS, COMPUTE_DTYPES, STRATEGIES, STIConfig
from sti_hf.integrations.device_profiles import device_profile
from sti_hf.planning import DeviceProfile
from sti_hf.planning.request import SUBMODELS
from sti_hf.shards.layout import FIDELITIES
from sti_hf.shards.store import ShardStore, is_store, store_defaults

USER_MISTAKE = 2
FIELDS = (
    "target_latency",
    "target_token_latency",
    "preload_budget",
    "seq_len",
    "strategy",
    "fidelity",
    "allocator",
    "importance",
    "compute_dtype",
    "strict",
    "batch_size",
    "fixed_plan",
    "submodels",
    "max_loss",
    "memory_budget",
)
"""The fields of STIConfig that are options."""

DTYPE_HELP = "what to compute in; auto: whatever is the fastest here"


def add_verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
    """A parser for a verb. `verbs` is what `add_subparsers` gave."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.set_defaults(verb=run)
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    return parser


def add_store(parser: argparse.ArgumentParser) -> None:
    """The argument STORE."""
    parser.add_argument("store", metavar="STORE", type=Path, help="a folder that `sti shard` made")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """The fields of STIConfig; what is not given is the store's default."""
    add_store(parser)
    parser.add_argument("--target-latency", metavar="T", help="such as 200ms")
    parser.add_argument("--target-token-latency", metavar="T", help="of each token after the first of a text (none)")
    parser.add_argument("--preload-budget", metavar="S", help="such as 1MB")
    parser.add_argument("--seq-len", metavar="TOKENS", type=int, help="tokens of the input to plan for")
    parser.add_argument("--batch-size", metavar="N", type=int, help="sequences of the batch that T is meant for")
    parser.add_argument(
        "--fixed-plan", action="store_true", default=None, help="run the plan of --seq-len whatever the length"
    )
    parser.add_argument(
        "--memory-budget", metavar="BYTES", help="such as 20MB: bound of preload, staging and working buffer together"
    )
    parser.add_argument(
        "--submodels",
        choices=SUBMODELS,
        help="which parts may run: those measured to lose little, any (the paper's rule), or none",
    )
    parser.add_argument(
        "--max-loss",
        metavar="POINTS",
        type=float,
        help="of the metric that a measured submodel may lose (2); of language models: per cent of perplexity",
    )
    parser.add_argument("--strategy", choices=STRATEGIES, help="sti, or one of the paper's baselines")
    parser.add_argument("--fidelity", type=int, choices=FIDELITIES, help="bits of all shards, for a baseline")
    parser.add_argument("--allocator", choices=ALLOCATORS, help="what chooses the fidelities; two_pass is the paper's")
    parser.add_argument(
        "--importance", metavar="NAME", help="a profile in the store; default: none, the default order"
    )
    parser.add_argument("--compute-dtype", choices=COMPUTE_DTYPES, help=DTYPE_HELP)
    parser.add_argument("--strict", action="store_true", default=None, help="fail if T cannot be met")


def sti_config(options: argparse.Namespace) -> STIConfig:
    """The store's defaults, with what the command line says instead."""
    if not is_store(options.store):
        ShardStore.open(options.store)  # raises what is wrong with it
    given = {name: getattr(options, name) for name in FIELDS if getattr(options, name) is not None}
    return STIConfig.coerce({**store_defaults(options.store), **given})


def show_progress(options: argparse.Namespace) -> None:
    """Lets progress bars be seen, where somebody looks."""
    if sys.stderr.isatty() and not options.json:
        transformers_logging.enable_progress_bar()


def measured_profile(
    options: argparse.Namespace, store: ShardStore, dtype: str, measure: bool = False
) -> DeviceProfile:
    """The device profile, with a progress bar where it must be measured."""
    show_progress(options)
    profile = device_profile(store, dtype, measure=measure)
    transformers_logging.disable_progress_bar()
    return profile


def print_by_stack(parts: Mapping[str, str]) -> None:
    """Prints, for a script, the JSON of each stack of a store by its path; where it has one, that alone."""
    print(parts.get("") or json.dumps({path: json.loads(text) for path, text in parts.items()}))


def print_json(content: Any) -> None:
    """Prints a verb's result for a script."""
    print(json.dumps(content, indent=2, default=float))  # scores are NumPy's

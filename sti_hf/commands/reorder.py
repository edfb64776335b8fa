"""`sti reorder`."""

from __future__ import annotations

import argparse
from typing import Any

from transformers.utils import logging

from sti_hf.commands.options import add_store, add_verb, print_json, show_progress
from sti_hf.drawing import terminal
from sti_hf.shards.store import ShardStore


def add(verbs: Any) -> None:
    """Defines the verb."""
    parser = add_verb(verbs, "reorder", run, "rewrite a store so that the most important slices stand first")
    add_store(parser)
    parser.add_argument("--importance", metavar="NAME", help="a profile in the store; default: the store's default")


def run(options: argparse.Namespace) -> int:
    """Runs the verb."""
    from sti_hf.integrations.importance import reorder_by_importance

    store = ShardStore.open(options.store)
    show_progress(options)
    with logging.tqdm(total=store.grid.layers, desc="Reordering", unit="layer", leave=False) as bar:
        store = reorder_by_importance(store, options.importance, lambda layers: bar.update(1))
    if options.json:
        print_json({"store": str(options.store), "slice_order": store.stack.slice_order})
        return 0
    terminal().print(f"{options.store}: the most important slices of every layer stand first.")
    return 0

"""`sti verify`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rich.console import Console
from rich.progress import Progress

from sti_hf.commands.options import USER_MISTAKE, add_store, add_verb, print_json
from sti_hf.shards.store import ShardStore
from sti_hf.shards.verification import verify_store


def add(verbs: Any) -> None:
    """Defines the verb."""
    add_store(add_verb(verbs, "verify", run, "read a whole store and check every checksum"))


def run(options: argparse.Namespace) -> int:
    """Runs the verb."""
    store = ShardStore.open(options.store)
    total = sum(store.index.files.values())
    with Progress(
        console=Console(stderr=True), disable=options.json or not sys.stderr.isatty(), transient=True
    ) as bar:
        task = bar.add_task("Verifying", total=total)
        damage = verify_store(store, lambda read: bar.update(task, completed=read))
    if options.json:
        print_json({"intact": not damage, "bytes": total, "damage": [vars(piece) for piece in damage]})
    elif not damage:
        print(f"{options.store} is intact: {total / 1e6:.1f} MB checked.")
    for piece in [] if options.json else damage:
        print(f"damaged: {piece.file} at {piece.offset}: {piece.what}")
    return USER_MISTAKE if damage else 0

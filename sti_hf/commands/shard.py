"""`sti shard`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from sti_hf.commands.options import add_verb, print_json, show_progress
from sti_hf.drawing import terminal
from sti_hf.integrations.calibration_text import SAMPLES, CalibrationText
from sti_hf.integrations.checkpoint import shard_checkpoint
from sti_hf.integrations.model_classes import class_by_name
from sti_hf.shards.quantizers import CALIBRATED, DEFAULT_QUANTIZER, QUANTIZER_NAMES


def add(verbs: Any) -> None:
    """Defines the verb."""
    shard = add_verb(verbs, "shard", run, "shard a checkpoint (a folder or a Hub id) into a store")
    shard.add_argument("source", metavar="SRC", help="a checkpoint's folder, or its id on the Hub")
    shard.add_argument("store", metavar="STORE", type=Path, help="the folder to make")
    shard.add_argument(
        "--quantizer",
        choices=sorted(QUANTIZER_NAMES),
        help=f"default: {CALIBRATED} with calibration text, else {DEFAULT_QUANTIZER}",
    )
    _add_calibration(shard)
    shard.add_argument(
        "--model-class",
        metavar="NAME",
        help="the Transformers class to shard it as, such as BertForMaskedLM; default: what its config.json says",
    )
    shard.add_argument("--no-full", action="store_true", help="leave the 32-bit weights out")


def _add_calibration(shard: argparse.ArgumentParser) -> None:
    group = shard.add_argument_group(
        "calibration", "text such as the model will be used on, no labels: far more accurate at 2 and 3 bits"
    )
    group.add_argument("--calibration", metavar="TEXT", help="a file, a text a line; or a dataset: its id or folder")
    group.add_argument("--calibration-config", metavar="NAME", help="the dataset's configuration")
    group.add_argument("--calibration-split", metavar="NAME", default="train", help="default: train")
    group.add_argument("--calibration-columns", metavar="NAME", nargs="+", default=[], help="one, or two for pairs")
    group.add_argument("--calibration-samples", metavar="N", type=int, default=SAMPLES, help=f"default: {SAMPLES}")


def _calibration(options: argparse.Namespace) -> CalibrationText | None:
    if options.calibration is None:
        return None
    return CalibrationText(
        options.calibration,
        config=options.calibration_config,
        split=options.calibration_split,
        columns=options.calibration_columns,
        samples=options.calibration_samples,
    )


def run(options: argparse.Namespace) -> int:
    """Runs the verb."""
    show_progress(options)
    begun = time.perf_counter()
    store = shard_checkpoint(
        options.source,
        options.store,
        quantizer=options.quantizer,
        calibration=_calibration(options),
        full=not options.no_full,
        model_class=class_by_name(options.model_class) if options.model_class is not None else None,
    )
    seconds = time.perf_counter() - begun
    size = sum(store.index.files.values())
    stacks = store.stacks.values()
    bytes_by_fidelity = {bits: sum(part.shard_bytes(bits) for part in store.parts) for bits in store.fidelities}
    cuts = {name: {"layers": stack.grid.layers, "slices": stack.grid.slices} for name, stack in store.stacks.items()}
    if options.json:
        print_json(
            {
                "store": str(options.store),
                "model_type": store.index.model_type,
                **cuts.get("", {"stacks": cuts}),
                "fidelities": store.fidelities,
                "quantizer": store.index.quantizer,
                "bytes": size,
                "bytes_by_fidelity": bytes_by_fidelity,
                "seconds": seconds,
            }
        )
        return 0
    console = terminal()
    shards = " and ".join(f"{stack.grid.layers} x {stack.grid.slices}" for stack in stacks)
    console.print(f"{options.store}: {shards} shards, {size / 1e6:.1f} MB in {seconds:.1f} s")
    for bits, of_fidelity in bytes_by_fidelity.items():
        console.print(f"  all shards at {bits:>2} bits: {of_fidelity / 1e6:7.1f} MB")
    return 0

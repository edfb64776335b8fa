"""`sti profile-device`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from sti_hf.commands.options import DTYPE_HELP, add_store, add_verb, measured_profile, print_by_stack
from sti_hf.config import COMPUTE_DTYPES
from sti_hf.drawing import terminal
from sti_hf.integrations.device_profiles import kept_profile_path
from sti_hf.planning import DeviceProfile
from sti_hf.shards.store import ShardStore


def add(verbs: Any) -> None:
    """Defines the verb."""
    profile = add_verb(verbs, "profile-device", run, "measure what reading and computing cost here")
    add_store(profile)
    profile.add_argument("--compute-dtype", choices=COMPUTE_DTYPES, default="auto", help=DTYPE_HELP)


def run(options: argparse.Namespace) -> int:
    """Runs the verb."""
    stacks = ShardStore.open(options.store).stacks
    profiles = {
        name: measured_profile(options, stack, options.compute_dtype, measure=True) for name, stack in stacks.items()
    }
    if options.json:
        print_by_stack({name: profile.to_json() for name, profile in profiles.items()})
        return 0
    for name, profile in profiles.items():
        _show(stacks[name], profile, kept_profile_path(stacks[name], options.compute_dtype))
    return 0


def _show(store: ShardStore, profile: DeviceProfile, kept: Path | None) -> None:
    console = terminal()
    if store.stack_name:
        console.print(store.stack_name)
    console.print(
        f"reading: {profile.bytes_per_second / 1e6:.0f} MB/s, {profile.request_seconds * 1e6:.0f} us a request; "
        f"each MB delays compute by {profile.delay_per_byte * 1e12:.0f} us\n"
        f"compute: {profile.compute_dtype}, {profile.gemm} GEMM; one layer, {profile.widths[-1]} slices:"
    )
    for tokens, row, before, after in zip(
        profile.tokens, profile.layer_seconds, profile.before_seconds, profile.after_seconds
    ):
        outside = f"before the layers {before * 1e3:.2f} ms, after them {after * 1e3:.2f} ms"
        console.print(f"  {tokens:>4} tokens: {row[-1] * 1e3:7.2f} ms ({outside})")
    for pairs, seconds in zip(profile.pairs, profile.attention_seconds):
        if seconds:
            console.print(f"  attention of a sequence of {math.isqrt(pairs)} tokens: {seconds * 1e3:.2f} ms more")
    weights = store.grid.slices * store.grid.slice_weights
    times = "  ".join(f"{bits}: {each * weights * 1e3:.2f}" for bits, each in profile.decompress_seconds.items())
    console.print(f"decompressing a layer, ms by bits: {times}")
    console.print(f"kept in {kept}" if kept else "not kept")

"""The verbs of `sti`, one file each: `add` defines a verb's options, `run` runs it and returns the exit status."""

from sti_hf.commands import plan, profile_device, profile_importance, reorder, report, run, shard, verify

VERBS = (shard, profile_device, profile_importance, reorder, plan, run, report, verify)
"""In the order in which `--help` lists them."""

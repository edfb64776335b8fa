"""`optimum-cli sti`: the verbs of `sti`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


class STICommand(BaseOptimumCLICommand):
    """Shards, plans and runs models cold, within a target latency, from a few megabytes."""

    COMMAND = CommandInfo(name="sti", help="Run transformers cold, in time, from little memory (sti_hf).")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        from sti_hf.cli import add_verbs

        add_verbs(parser)

    def run(self) -> None:
        from sti_hf.cli import run

        sys.exit(run(self.args))

"""What a process that runs one competitor is told: the same arguments for all of them."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from eval.coldstart.competitor import Competitor
from eval.coldstart.registry import make

REAL, TINY = "model", "tiny"
"""Folders of a competitor's files: for the checkpoint, and for the tiny model that a live app has run."""

BALLAST = "ballast"
"""Name of the file in the working folder that is read to spend the throttle's credit."""


@dataclass(frozen=True)
class Job:
    """One competitor in one working folder."""

    name: str
    work: str
    store: str
    tokens: int

    def competitor(self) -> Competitor:
        """The competitor, with nothing loaded yet."""
        return make(self.name, self.store, self.tokens)

    def folder(self, competitor: Competitor, which: str) -> Path:
        """Where its files are for `which` model (`REAL` or `TINY`)."""
        return Path(self.work) / competitor.folder / which

    def command(self, module: str, *arguments: str) -> list[str]:
        """The command that runs `eval.coldstart.<module>` for this job."""
        return module_command(module, json.dumps(asdict(self)), *arguments)


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs `eval.coldstart.<module>`."""
    return [sys.executable, "-m", f"eval.coldstart.{module}", *arguments]


def job_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose first argument, `job`, is what `Job.command` gives."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("job", type=lambda text: Job(**json.loads(text)))
    return parser

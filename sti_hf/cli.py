"""The `sti` command. `optimum-cli sti` has the same verbs, from the same definition."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging as transformers_logging

from sti_hf.commands import VERBS
from sti_hf.commands.options import USER_MISTAKE
from sti_hf.errors import STIError

LONGEST_LINE = 300
"""Characters of an error that is not our own: those can hold whole tracebacks."""


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
    except (STIError, OSError, ValueError, StrictDataclassError) as error:  # the last two from Transformers
        print(f"sti: error: {_in_one_line(error)}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print("sti: interrupted", file=sys.stderr)
        return 130


def _in_one_line(error: Exception) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    whole = isinstance(error, STIError) or len(line) <= LONGEST_LINE
    return line if whole else f"{line[: LONGEST_LINE - 1]}…"


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """Defines the verbs and their options on `parser`."""
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)
    for verb in VERBS:
        verb.add(verbs)


if __name__ == "__main__":
    sys.exit(main())

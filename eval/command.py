"""What benchmarks have in common that are commands: how they run, what they print, and one sentence for what will not
do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as transformers_logging

from sti_hf.config import parse_bytes, parse_seconds


def publish(text: str, file: Path | None) -> None:
    """Prints what a benchmark has to say, and writes it to a file where one was named."""
    print(text)
    if file is not None:
        file.write_text(text + "\n")


def run_quietly(
    parser: argparse.ArgumentParser, options: argparse.Namespace, run: Callable[[argparse.Namespace], None]
) -> None:
    """Runs a benchmark with its options, without Transformers' progress bars; see `one_line_errors`."""
    transformers_logging.disable_progress_bar()
    with one_line_errors(parser):
        run(options)


@contextmanager
def one_line_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Inside, a `ValueError` or `OSError` ends the program as the parser's own errors do."""
    try:
        yield
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))


def seconds(text: str) -> float:
    """The type of options that are times, such as "100ms"."""
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def byte_count(text: str) -> int:
    """The type of options that are sizes, such as "1MB"."""
    try:
        return parse_bytes(text, "this")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error

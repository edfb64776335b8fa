"""What a person gets who called a benchmark with something that will not do: one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Inside, a `ValueError` or `OSError` ends the program as the parser's own errors do."""
    try:
        yield
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))

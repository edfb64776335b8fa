"""How a benchmark ran: what a reader needs to run it again, without the paths of this machine."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

CPU = Path("/proc/cpuinfo")


def command_line(module: str, arguments: Sequence[str] | None) -> str:
    """The command with these arguments (None: this process's); of absolute paths, also after NAME=, only the names."""
    words = sys.argv[1:] if arguments is None else arguments
    return " ".join(["python -m", module, *(re.sub(r"(^|=)/.*?([^/]*)/*$", r"\1\2", word) for word in words)])


def machine() -> str:
    """Processor, system, versions, and the date."""
    models = [line.partition(":")[2].strip() for line in _lines(CPU) if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    return (
        f"{os.cpu_count()} processors ({processor}), Linux {platform.release()}, Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, {date.today()}"
    )


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []

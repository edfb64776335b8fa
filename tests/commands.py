"""The `sti` command, run inside the tests' process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from transformers.utils import logging

from sti_hf import cli
from tests.integrations.checkpoints import use_known_device


class Result(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output, which must be JSON and nothing else."""
        return json.loads(self.out)


Sti = Callable[..., Result]


def commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Sti]:
    """Yields what runs `sti` with arguments, as a fixture does; puts back afterwards what `sti` has set."""
    use_known_device(monkeypatch)
    verbosity = logging.get_verbosity()

    def command(*arguments: Any) -> Result:
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            assert isinstance(exit.code, int)
            status = exit.code
        return Result(status, *capsys.readouterr())

    yield command
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def done(result: Result) -> Result:
    """A result that must be a success."""
    assert result.status == 0, result.err
    assert result.err == ""
    return result

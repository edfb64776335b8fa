"""Which instruction set the kernels use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sti_hf import native


def test_instruction_set_is_chosen_by_the_environment() -> None:
    def run_with(isa: str) -> subprocess.CompletedProcess[str]:
        code = f"import sys; sys.path.insert(0, {folder!r}); import _native; print(_native.isa())"
        environment = os.environ | {"STI_HF_ISA": isa}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    folder = os.path.dirname(native._native.__file__)  # the extension alone: the package takes seconds to import
    assert run_with("portable").stdout.strip() == "portable"
    assert 'instruction set "mmx" is not available' in run_with("mmx").stderr


def test_unknown_instruction_set() -> None:
    with pytest.raises(ValueError, match=r"this processor runs: .*portable"):
        native.set_isa("mmx")

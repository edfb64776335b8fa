"""Memory that is given back to the system, and values that are not lost by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sti_hf.process_memory import page_out, return_freed_memory

STATUS = Path("/proc/self/status")
SIZE = 32 << 20

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="resident memory is read from /proc")


def resident(kind: str) -> int:
    """Bytes resident: `RssAnon` those of the process alone, `RssFile` those mapped from files."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(kind)]
    return int(line.split()[1]) * 1024


def test_a_mapped_tensor_leaves_the_resident_set_and_keeps_its_values(tmp_path: Path) -> None:
    values = torch.arange(SIZE // 4, dtype=torch.int32)
    save_file({"values": values}, tmp_path / "file")
    mapped = load_file(tmp_path / "file")["values"]
    assert torch.equal(mapped, values)
    before = resident("RssFile")
    page_out(mapped)
    assert resident("RssFile") < before - SIZE // 2
    assert torch.equal(mapped, values)


def test_values_written_to_memory_survive() -> None:
    values = torch.arange(SIZE // 4, dtype=torch.int32)
    page_out(values)
    assert torch.equal(values, torch.arange(SIZE // 4, dtype=torch.int32))


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_what_is_smaller_than_a_page_or_two_is_left_alone(size: int) -> None:
    values = torch.arange(size, dtype=torch.uint8)
    page_out(values)
    assert torch.equal(values, torch.arange(size, dtype=torch.uint8))


def test_freed_blocks_are_returned() -> None:
    # Interleaved, so that those freed lie between others, and too small to be mapped on their own.
    blocks = [torch.ones(1 << 14) for _ in range(2 * SIZE >> 16)]
    before = resident("RssAnon")
    del blocks[::2]
    return_freed_memory()
    assert resident("RssAnon") < before - SIZE // 2

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sti_hf.process_memory import LARGE, page_out, return_freed_memory, return_large_blocks

STATUS = Path("/proc/self/status")
SIZE = 32 * LARGE

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
    return_large_blocks()
    # Interleaved, so that those freed lie between others.
    blocks = [torch.ones(LARGE // 8) for _ in range(2 * SIZE * 2 // LARGE)]
    before = resident("RssAnon")
    del blocks[::2]
    return_freed_memory()
    assert resident("RssAnon") < before - SIZE // 2


def test_large_blocks_are_returned_when_freed() -> None:
    # In a process of its own: what others left on the heap could hold the block.
    code = """
from pathlib import Path
import torch
from sti_hf.process_memory import return_large_blocks

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if "RssAnon" in line)

return_large_blocks()
for size in (8, 16, 8):  # glibc, left alone, keeps blocks as large as those that it has seen freed
    block = torch.ones(size << 18)
    held = resident()
    del block
    assert resident() < held - (size << 9), (size, held, resident())
"""
    subprocess.run([sys.executable, "-c", code], check=True)

"""What is damaged, cut short or not there is told, with the file and the offset."""

from __future__ import annotations

from pathlib import Path

import pytest

from sti_hf import native
from sti_hf.native import Outcome
from tests.native.reading import BLOCK, CHUNK, SIZE, STEPS, Reading, aligned, in_steps, outcomes_of


@pytest.mark.parametrize("threads", [1, 3])
def test_flipped_byte(path: Path, content: bytes, threads: int) -> None:
    where = 5 * CHUNK + 100
    damaged = bytearray(content)
    damaged[where] ^= 1
    path.write_bytes(damaged)
    streamer, buffer = native.Streamer([str(path)], threads=threads), aligned(STEPS * CHUNK)
    in_steps(content).start(streamer, buffer)
    streamer.wait(4)
    for step in (5, STEPS - 1):
        with pytest.raises(native.StreamError, match=f"{path}: the checksum .* at offset {5 * CHUNK} does not match"):
            streamer.wait(step)
    streamer.wait(4)

    path.write_bytes(content)  # mended: the same streamer goes on
    streamer.cancel()
    assert outcomes_of(streamer)[:6] == [Outcome.CHECKED] * 5 + [Outcome.FAILED]
    in_steps(content).start(streamer, buffer)
    streamer.wait(STEPS - 1)
    assert outcomes_of(streamer) == [Outcome.CHECKED] * STEPS


def test_damage_of_one_step_is_not_that_of_others(path: Path, content: bytes) -> None:
    damaged = bytearray(content)
    for step in (2, 7):
        damaged[step * CHUNK] ^= 1
    path.write_bytes(damaged)
    streamer, buffer = native.Streamer([str(path)], threads=2), aligned(STEPS * CHUNK)
    reading = Reading([content])
    for step in reversed(range(STEPS)):  # what fails first is not what is needed first
        reading.add(step * CHUNK, CHUNK, step * CHUNK, step=step)
    reading.start(streamer, buffer)
    streamer.wait(1)
    streamer.wait(0)
    for step in (2, 6, 7, STEPS - 1):
        with pytest.raises(native.StreamError, match=f"offset {2 * CHUNK} "):
            streamer.wait(step)
    failed = [STEPS - 1 - place for place, outcome in enumerate(outcomes_of(streamer)) if outcome == Outcome.FAILED]
    assert failed == [7, 2]
    assert outcomes_of(streamer).count(Outcome.CHECKED) == STEPS - 2


@pytest.mark.parametrize("size", [7 * CHUNK, 7 * CHUNK + 1, 7 * CHUNK + BLOCK + 5, 0])
def test_file_cut_short(path: Path, content: bytes, size: int) -> None:
    path.write_bytes(content[:size])
    streamer = native.Streamer([str(path)])
    in_steps(content).start(streamer, aligned(STEPS * CHUNK))
    if size:
        streamer.wait(6)
    with pytest.raises(native.StreamError, match=f"{path}: the file is cut short: it ends at offset {size},"):
        streamer.wait(7)


@pytest.mark.parametrize("missing", [1, 1000])
def test_file_cut_short_in_its_last_block(path: Path, content: bytes, missing: int) -> None:
    path.write_bytes(content[:-missing])
    streamer = native.Streamer([str(path)])
    in_steps(content).start(streamer, aligned(STEPS * CHUNK))
    streamer.wait(STEPS - 2)
    with pytest.raises(native.StreamError, match=f"cut short: it ends at offset {SIZE - missing},"):
        streamer.wait(STEPS - 1)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        native.Streamer([str(tmp_path / "none")])
    assert caught.value.filename == str(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        native.evict(str(tmp_path / "none"))


def test_unreadable_file(tmp_path: Path) -> None:
    reading = Reading([bytes(BLOCK)])
    reading.add(0, BLOCK, 0)
    streamer = native.Streamer([str(tmp_path)])
    reading.start(streamer, aligned(BLOCK))
    with pytest.raises(native.StreamError, match=f"{tmp_path}: cannot read 4096 bytes at offset 0: Is a directory"):
        streamer.wait(0)

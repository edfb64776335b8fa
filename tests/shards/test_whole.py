"""Files and folders that are there whole or not at all, whatever happens to the process that writes them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from sti_hf.errors import StoreExistsError
from sti_hf.shards import whole
from sti_hf.shards.permissions import readers_of
from sti_hf.shards.unfinished import SUFFIX
from sti_hf.shards.whole import whole_or_absent, whole_or_unchanged, write_whole

WRITERS = ("folder", "replacement", "file")
CONTEXT = multiprocessing.get_context("fork")


class Writer:
    """A process that is in the middle of writing."""

    def __init__(self, what: str, path: Path) -> None:
        self.path = path
        self.half, self.go_on = CONTEXT.Event(), CONTEXT.Event()
        self.process = CONTEXT.Process(target=getattr(self, what), daemon=True)
        self.process.start()
        assert self.half.wait(60)

    def folder(self) -> None:
        with whole_or_absent(self.path) as folder:
            self.wait_in(folder)

    def replacement(self) -> None:
        with whole_or_unchanged(self.path) as folder:
            self.wait_in(folder)

    def file(self) -> None:
        whole.os.fsync = lambda descriptor: self.wait()  # type: ignore[assignment]
        write_whole(self.path, b"half")

    def wait_in(self, folder: Path) -> None:
        (folder / "part").write_text("half")
        self.wait()

    def wait(self) -> None:
        self.half.set()
        self.go_on.wait(60)

    def end(self) -> int | None:
        self.process.join(60)
        return self.process.exitcode


def write(what: str, path: Path) -> None:
    if what == "file":
        write_whole(path, b"whole")
    else:
        with whole_or_absent(path) as folder:
            (folder / "part").write_text("whole")


def folder_of(path: Path, mode: int = 0o755) -> Path:
    path.mkdir()
    (path / "part").write_text("old")
    (path / "part").chmod(mode & 0o666)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("killed", WRITERS)
@pytest.mark.parametrize("next_write", ["folder", "file"])
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path, killed: str, next_write: str) -> None:
    if killed == "replacement":
        folder_of(tmp_path / "one")
    writer = Writer(killed, tmp_path / "one")
    writer.process.kill()
    assert writer.end() == -signal.SIGKILL
    (left,) = tmp_path.glob(".*")
    assert left.name.endswith(SUFFIX)
    write(next_write, tmp_path / "another")
    expected = ["another", "one"] if killed == "replacement" else ["another"]
    assert sorted(os.listdir(tmp_path)) == expected


@pytest.mark.parametrize("what", WRITERS)
def test_what_is_still_being_written_stays(tmp_path: Path, what: str) -> None:
    if what == "replacement":
        folder_of(tmp_path / "one")
    writer = Writer(what, tmp_path / "one")
    write("folder", tmp_path / "another")
    write("file", tmp_path / "third")
    assert len(list(tmp_path.glob(f".*{SUFFIX}"))) == 1
    writer.go_on.set()
    assert writer.end() == 0
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "one" / "part" if what != "file" else tmp_path / "one").read_text() == "half"


def test_only_ours_is_removed(tmp_path: Path) -> None:
    others = [f"x{SUFFIX}", ".hidden", ".other.tmp", SUFFIX.removeprefix(".")]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / f".link{SUFFIX}").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / f".pipe{SUFFIX}")
    write("folder", tmp_path / "one")
    assert {*others, "one", "precious", f".link{SUFFIX}"} <= set(os.listdir(tmp_path))
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["é" * 127, "a" * 255])
def test_names_as_long_as_they_may_be(tmp_path: Path, name: str) -> None:
    write("folder", tmp_path / name)
    (tmp_path / "files").mkdir()
    write("file", tmp_path / "files" / name)
    assert os.listdir(tmp_path / "files") == [name]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError("No locks available")

    (tmp_path / f".left{SUFFIX}").write_text("perhaps somebody writes it")
    monkeypatch.setattr("fcntl.flock", refuse)
    write("folder", tmp_path / "one")
    write("file", tmp_path / "two")
    assert sorted(os.listdir(tmp_path)) == [f".left{SUFFIX}", "one", "two"]


def test_a_place_that_another_process_has_taken_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(StoreExistsError, match="exists and is not empty"), whole_or_absent(tmp_path / "one"):
        folder_of(tmp_path / "one")
    assert (tmp_path / "one" / "part").read_text() == "old"
    assert os.listdir(tmp_path) == ["one"]


def test_a_dangling_link_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreExistsError), whole_or_absent(tmp_path / "one"):
        pass
    assert os.listdir(tmp_path) == ["one"]


@pytest.mark.parametrize("can_swap", [True, False])
def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_swap: bool) -> None:
    if not can_swap:
        monkeypatch.setattr(whole, "_renameat2", None)
    one = folder_of(tmp_path / "one")
    with (one / "part").open() as reader:
        with whole_or_unchanged(one) as folder:
            (folder / "part").write_text("new")
            (folder / "more").write_text("new")
        assert reader.read() == "old"
    assert {path.name: path.read_text() for path in one.iterdir()} == {"part": "new", "more": "new"}
    assert os.listdir(tmp_path) == ["one"]


def test_swapping_leaves_no_moment_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        pytest.fail("two renames, and nothing of that name between them")

    one = folder_of(tmp_path / "one")
    monkeypatch.setattr(whole.os, "replace", refuse)
    with whole_or_unchanged(one) as folder:
        (folder / "part").write_text("new")
    assert (one / "part").read_text() == "new"


@pytest.mark.parametrize(("mode", "expected"), [(0o755, 0o755), (0o750, 0o750), (0o700, 0o700)])
def test_a_replacement_is_for_the_same_readers(tmp_path: Path, mode: int, expected: int) -> None:
    one = folder_of(tmp_path / "one", mode)
    with whole_or_unchanged(one) as folder:
        (folder / "part").write_text("new")
        (folder / "more").write_text("new")
    assert one.stat().st_mode & 0o777 == expected
    assert {path.stat().st_mode & 0o777 for path in one.iterdir()} == {expected & 0o666 & 0o644}
    write_whole(one / "part", b"newer")
    assert (one / "part").stat().st_mode & 0o777 == expected & 0o644


def test_who_can_read(tmp_path: Path) -> None:
    one = folder_of(tmp_path / "one")
    file = one / "part"
    for file_mode, folder_mode, mask in [
        (0o644, 0o755, 0o777),
        (0o640, 0o755, 0o770),
        (0o644, 0o750, 0o770),
        (0o604, 0o755, 0o707),
        (0o600, 0o755, 0o700),
        (0o644, 0o700, 0o700),
        (0o444, 0o111, 0o777),
    ]:
        file.chmod(file_mode)
        one.chmod(folder_mode)
        assert readers_of([file]) == mask
    assert readers_of([]) == 0o777

"""Work that is split over processes, and taken up again where an earlier run was interrupted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object

Item = tuple[int, int]
Compute = Callable[[Sequence[Item]], Iterable[tuple[Item, Sequence[float]]]]
"""Works on items in their order, and gives the numbers of each as soon as they are known."""


class SharedWork:
    """Items and their numbers. Each process works on every P-th item; what is done is written down at once.

    Args:
        folder: for what is done. Its name must say what the numbers depend on.
        state: of the processes; all of them must make the same calls.
    """

    def __init__(self, folder: Path, state: PartialState) -> None:
        self.folder = folder
        self.state = state

    def run(
        self, kind: str, items: Sequence[Item], compute: Compute, progress: Callable[[int], object] = lambda done: None
    ) -> dict[Item, list[float]]:
        """The numbers of all items, the same in all processes.

        `kind` tells this work from other in the folder. `progress` is told how many items have become done: at first
        those of an earlier run, then one and as many as there are other processes, which are taken to be as fast.
        """
        done = self._shared(self._read(kind))
        remaining = [item for item in items if item not in done]
        progress(len(items) - len(remaining))
        left = len(remaining)
        mine = remaining[self.state.process_index :: self.state.num_processes]
        self.folder.mkdir(parents=True, exist_ok=True)
        new: dict[Item, list[float]] = {}
        with (self.folder / f"{kind}-{self.state.process_index}-{os.getpid()}.jsonl").open("a") as file:
            for item, numbers in compute(mine):
                new[item] = list(numbers)
                file.write(json.dumps([item, new[item]]) + "\n")
                file.flush()
                step = min(self.state.num_processes, left)
                left -= step
                progress(step)
        done |= self._shared(new)
        return {item: done[item] for item in items}

    def forget(self) -> None:
        """Removes what was written down."""
        self.state.wait_for_everyone()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, kind: str) -> dict[Item, list[float]]:
        done = {}
        for file in sorted(self.folder.glob(f"{kind}-*.jsonl")):
            for line in file.read_text().splitlines():
                try:
                    (first, second), numbers = json.loads(line)
                except ValueError:  # the line on which a process was killed
                    continue
                done[first, second] = numbers
        return done

    def _shared(self, mine: dict[Item, list[float]]) -> dict[Item, list[float]]:
        """What any process has."""
        everything: dict[Item, list[float]] = {}
        for one in gather_object([mine]):
            everything |= one
        return everything

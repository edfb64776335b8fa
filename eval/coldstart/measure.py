"""One cold start of one competitor, in this process. Prints the measurements as JSON.

*live app*: the competitor has loaded and run a tiny model of the family here, and its files for the real model are out
of the page cache. *process*: nothing of all this has been in memory, and time counts from `--started`, the moment at
which this process was asked for (`time.monotonic`).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median

import numpy as np

from eval.accounting import disk_bytes, forget_highest, highest_resident_set, resident_set, return_freed_memory
from eval.cgroups import join
from eval.coldstart.competitor import Competitor, Inputs
from eval.coldstart.job import BALLAST, REAL, TINY, Job, job_parser
from eval.disk import cached_bytes, evict
from eval.memory_limit import limit
from eval.throttle_credit import spend_credit

IDLE_SECONDS = 0.5
"""After the last answer, before the resident set is read: what an app holds between its answers."""

TINY_VOCABULARY = 99
FIRST_TOKEN = 10  # tokens below may be special


def random_inputs(tokens: int, vocabulary: int, seed: int) -> Inputs:
    """A sequence of random tokens: every word of it costs a competitor that reads embeddings by row a row."""
    ids = np.random.default_rng(seed).integers(FIRST_TOKEN, vocabulary, (1, tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def become_live(job: Job, competitor: Competitor) -> None:
    """Runs the tiny model, and takes the real one's files out of the page cache."""
    competitor.load_tiny(job.folder(competitor, TINY), job.folder(competitor, REAL))
    competitor.forward(random_inputs(job.tokens, TINY_VOCABULARY, seed=0))
    competitor.close()
    files = competitor.files(job.folder(competitor, REAL))
    os.sync()
    evict(*files)
    if cached := cached_bytes(*files):
        raise RuntimeError(f"{cached} bytes of {job.name}'s files are still in the page cache.")


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """The measurements: seconds and bytes."""
    job: Job = arguments.job
    competitor = job.competitor()
    folder = job.folder(competitor, REAL)
    later: int = arguments.later_forwards
    inputs = [random_inputs(job.tokens, arguments.vocabulary, seed) for seed in range(2 * later + 1)]
    live = arguments.started is None
    if live:
        become_live(job, competitor)
    if arguments.memory_group is not None:
        limit(arguments.memory_group, arguments.memory_extra)
    if live and arguments.disk_rate is not None:
        spend_credit(Path(job.work) / BALLAST, arguments.disk_rate)
    return_freed_memory()  # of the tiny model
    forget_highest()
    memory, read = resident_set(), disk_bytes() if live else 0
    begun = time.monotonic()
    competitor.load(folder)
    loaded = time.monotonic()
    competitor.forward(inputs[0])
    answered = time.monotonic()
    result = {
        "ttfa": answered - (begun if live else arguments.started),
        "load": loaded - begun,
        "first_forward": answered - loaded,
        "disk_bytes": disk_bytes() - read,
    }
    result["warm_forward"] = median(timed_forward(competitor, each) for each in inputs[1 : later + 1])
    read = disk_bytes()
    result["evicted_forward"] = median(evicted_forwards(competitor, folder, inputs[later + 1 :]))
    result["evicted_disk_bytes"] = (disk_bytes() - read) / later
    time.sleep(IDLE_SECONDS)
    result["resident_growth"] = resident_set() - memory
    result["highest_growth"] = highest_resident_set() - memory
    competitor.close()
    return result


def timed_forward(competitor: Competitor, inputs: Inputs) -> float:
    """Seconds of one forward."""
    begun = time.monotonic()
    competitor.forward(inputs)
    return time.monotonic() - begun


def evicted_forwards(competitor: Competitor, folder: Path, inputs: list[Inputs]) -> list[float]:
    """Seconds of forwards before each of which the files are taken out of the page cache."""
    seconds = []
    for each in inputs:
        evict(*competitor.files(folder))
        seconds.append(timed_forward(competitor, each))
    return seconds


def main() -> None:
    parser = job_parser(__doc__)
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--started", type=float, help="makes it a cold process")
    parser.add_argument("--later-forwards", type=int, default=5, metavar="N", help="warm, and as many evicted")
    parser.add_argument("--disk-rate", type=float, help="to which the kernel holds the disk, MB/s")
    parser.add_argument("--memory-group", type=Path)
    parser.add_argument("--memory-extra", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.memory_group is not None:
        join(arguments.memory_group)
    print(json.dumps(measure(arguments)))


if __name__ == "__main__":
    main()

"""Runs the jobs of a benchmark, each in a process of its own. Imports no library that a competitor uses: this process
must not keep their files in memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.cgroups import control_group
from eval.coldstart.job import BALLAST, Job
from eval.disk import cached_bytes, drop_caches
from eval.throttle_credit import spend_credit

LIVE_APP, PROCESS = "live-app", "process"
STARTS = (LIVE_APP, PROCESS)
PATIENCE_SECONDS = 60
"""For one competitor under the memory limit: one that pages its weights in and out takes much longer, if it ends."""
KILLED, UNFINISHED = "killed", f"not done in {PATIENCE_SECONDS} s"


@dataclass(frozen=True)
class Rounds:
    """How a cold start is made: `start` is one of `STARTS`, `vocabulary` that of the model, `throttled` the rate in
    MB/s to which the kernel holds the disk, if it does."""

    start: str
    vocabulary: int
    throttled: float | None

    def interleaved(self, jobs: list[Job], rounds: int) -> dict[str, list[dict[str, Any]]]:
        """Measurements by name, one for every round: A B C, A B C, ..."""
        results: dict[str, list[dict[str, Any]]] = {job.name: [] for job in jobs}
        for number in range(rounds):
            for job in jobs:
                result = self.one(job)
                results[job.name].append(result)
                tell(f"round {number + 1}: {job.name:<24} {result['ttfa'] * 1e3:8.1f} ms to the first answer")
        return results

    def one(self, job: Job) -> dict[str, Any]:
        """One cold start."""
        arguments = ["--vocabulary", str(self.vocabulary)]
        if self.throttled is not None:
            arguments += ["--disk-rate", str(self.throttled)]
        if self.start == PROCESS:
            drop_caches()
            _check_libraries_are_cold()
            if self.throttled is not None:
                spend_credit(Path(job.work) / BALLAST, self.throttled)
            arguments += ["--started", str(time.monotonic())]
        return json.loads(run(job.command("measure", *arguments)))

    def under_limit(self, job: Job, extra: int) -> dict[str, Any] | str:
        """A live app's cold start and one more of each kind of forward, with `extra` bytes of memory more than it had
        before; `KILLED` or `UNFINISHED` where it does not get that far."""
        with control_group("memory") as group:
            arguments = ["--vocabulary", str(self.vocabulary), "--later-forwards", "1", "--memory-group", str(group)]
            command = job.command("measure", *arguments, "--memory-extra", str(extra))
            try:
                finished = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                return UNFINISHED
        return json.loads(finished.stdout.splitlines()[-1]) if finished.returncode == 0 else KILLED


def run(command: list[str]) -> str:
    """The last line that a command prints. Where it fails, its messages are shown."""
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        sys.stderr.write(finished.stderr)
        raise SystemExit(f"This command failed: {' '.join(command)}")
    return (finished.stdout.splitlines() or [""])[-1]


def tell(message: str) -> None:
    """Progress, for people."""
    print(message, file=sys.stderr, flush=True)


def _check_libraries_are_cold() -> None:
    from importlib.util import find_spec

    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return
    libraries = Path(spec.origin).parent / "lib"
    cached = cached_bytes(libraries)
    if cached > 16 << 20:
        tell(f"{cached >> 20} MiB of PyTorch's libraries stay in memory: another process uses them; end it")

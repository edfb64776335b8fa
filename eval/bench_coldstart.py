"""Time to the first answer, and memory, of sti_hf and of what people use instead, on the same work in one run.

    python -m eval.bench_coldstart --model CHECKPOINT --glue FOLDER_OR_ID --disk-rate 200 --plot coldstart.png

Each cold start is a process of its own, in interleaved rounds. *live-app*: the process has run a tiny model of the
same family with the same library, and only the model's files are out of memory. *process*: everything is, and imports
count. Needs `pip install "sti-hf[bench]"` and, for disk rates, memory limits and cold processes, root.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from contextlib import ExitStack
from pathlib import Path

from eval.coldstart.job import BALLAST, Job, module_command
from eval.coldstart.registry import OTHERS, sti_name
from eval.coldstart.report import Report
from eval.coldstart.rounds import LIVE_APP, STARTS, Rounds, run, tell
from eval.coldstart.sample import SAMPLE
from eval.disk import EMULATED, add_rate_option, disk_rate
from eval.throttle_credit import write_ballast


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a sequence classifier's checkpoint, a folder")
    parser.add_argument("--start", choices=STARTS, default=LIVE_APP)
    parser.add_argument("--competitors", nargs="*", choices=list(OTHERS), default=list(OTHERS))
    parser.add_argument("--targets", nargs="*", default=["100ms", "150ms", "200ms", "400ms"], metavar="T")
    parser.add_argument("--preload-budget", default="1MB", help="S at each T (default 1MB)")
    parser.add_argument("--sti", nargs="*", default=["400ms:200MB"], metavar="T:S", help="sti_hf at further T and S")
    parser.add_argument("--store", default="lloyd", help="a store of the model, or a quantizer to make one (lloyd)")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--glue", help="measure accuracy: a folder with GLUE's SST-2, or nyu-mll/glue")
    parser.add_argument("--samples", type=int, default=200, help="sentences to measure accuracy on (default 200)")
    parser.add_argument(
        "--memory-limit", type=float, metavar="MB", help="also run with so much more memory, such as 64"
    )
    parser.add_argument("--work", type=Path, help="keep the competitors' files here, for the next run")
    parser.add_argument("--json", type=Path, help="write everything measured here")
    parser.add_argument("--markdown", type=Path, help="write the tables here, too")
    parser.add_argument("--plot", type=Path, help="draw them here")
    add_rate_option(parser)
    return parser.parse_args()


def main() -> None:
    arguments = options()
    with ExitStack() as stack:
        work = (arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        # Device profiles are of a disk rate: a cache of its own keeps this one's apart.
        os.environ["STI_HOME"] = str(work / f"home-{arguments.disk_rate or 'unlimited'}")
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        report = benchmark(arguments, work)
    if arguments.json:
        arguments.json.write_text(json.dumps(report.to_dict(), indent=1))
    if arguments.markdown:
        arguments.markdown.write_text(report.markdown() + "\n")
    if arguments.plot:
        from eval.coldstart.plot import plot

        plot(report, arguments.plot)
    print(report.markdown())


def benchmark(arguments: argparse.Namespace, work: Path) -> Report:
    """Prepares, measures, and asks for accuracy and survival, in this order."""
    sti = [sti_name(target, arguments.preload_budget) for target in arguments.targets]
    sti += [sti_name(*each.split(":", 1)) for each in arguments.sti]
    jobs = [Job(name, str(work), arguments.store, arguments.tokens) for name in (*arguments.competitors, *sti)]
    vocabulary = json.loads((arguments.model / "config.json").read_text())["vocab_size"]
    work.mkdir(parents=True, exist_ok=True)
    write_ballast(work / BALLAST)
    with disk_rate(work, arguments.disk_rate, arguments.emulate) as how:
        for job in jobs:
            tell(f"preparing {job.name}")
            run(job.command("prepare", "--checkpoint", str(arguments.model)))
        throttled = None if EMULATED in how else arguments.disk_rate
        rounds = Rounds(arguments.start, vocabulary, throttled)
        report = Report(settings_of(arguments, how), rounds.interleaved(jobs, arguments.rounds))
    if arguments.glue:
        add_accuracy(report, jobs, arguments, work)
    if arguments.memory_limit is not None:
        for job in jobs:
            tell(f"{job.name} under the memory limit")
            report.under_limit[job.name] = rounds.under_limit(job, int(arguments.memory_limit * 1e6))
    return report


def add_accuracy(report: Report, jobs: list[Job], arguments: argparse.Namespace, work: Path) -> None:
    """Accuracy of every competitor: it does not depend on the disk's rate, but for sti_hf's plans, which are made."""
    sample = ["--checkpoint", str(arguments.model), "--glue", arguments.glue, "--count", str(arguments.samples)]
    sample += ["--tokens", str(arguments.tokens), "--path", str(work / SAMPLE)]
    run(module_command("sample", *sample))
    for job in jobs:
        tell(f"accuracy of {job.name}")
        report.accuracy[job.name] = float(run(job.command("accuracy")))


def settings_of(arguments: argparse.Namespace, disk: str) -> dict[str, object]:
    """How the benchmark ran."""
    settings = {
        "model": arguments.model.name,
        "cold start": arguments.start,
        "disk": disk,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "store": Path(arguments.store).name,
        "machine": f"{os.cpu_count()} processors, {platform.machine()}, Linux {platform.release()}",
    }
    if arguments.glue:
        settings["accuracy on"] = f"{arguments.samples} sentences of SST-2's validation split"
    if arguments.memory_limit is not None:
        settings["memory limit"] = f"{arguments.memory_limit:.0f} MB more than before loading (unlimited disk)"
    return settings


if __name__ == "__main__":
    main()

"""`sti profile-importance`."""

from __future__ import annotations

import argparse
from typing import Any

from sti_hf.commands.options import add_store, add_verb, print_json, show_progress
from sti_hf.drawing import terminal
from sti_hf.planning.importance_file import METHODS, examples_of
from sti_hf.profiling.examples import PARTS
from sti_hf.profiling.tasks import GLUE, GLUE_TASKS


def add(verbs: Any) -> None:
    """Defines the verb."""
    parser = add_verb(
        verbs, "profile-importance", run, "measure what every shard is worth for a task, or to a language model"
    )
    add_store(parser)
    measured_on = parser.add_mutually_exclusive_group(required=True)
    measured_on.add_argument("--task", choices=GLUE_TASKS, help="a task of GLUE; others: see the README")
    measured_on.add_argument(
        "--texts",
        metavar="FILE",
        help="running text in UTF-8, for language models: effects are of the next token's distribution (KL), and "
        "submodels have full perplexity / perplexity for a metric, so that --max-loss 2 lets perplexity grow by 2 %%",
    )
    parser.add_argument(
        "--method",
        choices=sorted(METHODS),
        default="effects",
        help="effects (default): how much each shard's error moves the outputs, no labels needed; "
        "exhaustive: the paper's, the metric with each shard raised alone",
    )
    parser.add_argument("--name", help="of the profile; default: the task's, or language")
    parser.add_argument("--dataset", metavar="ID_OR_DIR", help=f"a dataset's id or folder; default: {GLUE}")
    parser.add_argument("--split", help="of the dataset; default: the task's validation split")
    parser.add_argument(
        "--part", choices=PARTS, help="half to profile on; default: first of a task's split, all of texts"
    )
    parser.add_argument(
        "--samples", metavar="N", type=int, help="at most so many sentences, or windows; default: all, or 32"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the halves and samples")
    parser.add_argument("--metric", metavar="DIR", help="folder of an evaluate metric; default: the task's")
    parser.add_argument(
        "--base-fidelity",
        metavar="BITS",
        type=int,
        help="bits from which shards are raised; default: the lowest (exhaustive: at which the metric moves)",
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=int, help="sentences, or windows, in a batch; default: 32, or 4"
    )
    parser.add_argument(
        "--max-length",
        metavar="TOKENS",
        type=int,
        help="longest sentence, or the window of texts; default: 128, or 256",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the verb."""
    from accelerate import PartialState

    from sti_hf.integrations.importance import profile_importance

    show_progress(options)
    measured = profile_importance(
        options.store,
        options.task,
        texts=options.texts,
        method=options.method,
        name=options.name,
        dataset=options.dataset,
        split=options.split,
        part=options.part,
        samples=options.samples,
        seed=options.seed,
        metric=options.metric,
        base_bits=options.base_fidelity,
        batch_size=options.batch_size,
        max_length=options.max_length,
    )
    if not PartialState().is_main_process:
        return 0
    if options.json:
        content = {"name": measured.name, "file": str(measured.path), "picture": str(measured.picture)}
        print_json({**content, **measured.facts, "worth": measured.profile.worth().tolist()})
        return 0
    facts = measured.facts
    console = terminal()
    console.print(f"{measured.name}: {options.method}, {examples_of(facts)}, from {facts['base_bits']} bits")
    if "full_score" in facts:
        console.print(
            f"  {facts['metric']}: {facts['base_score']:.4f} at {facts['base_bits']} bits, "
            f"{facts['full_score']:.4f} in full, {facts['chance']:.4f} by chance"
        )
    if "full_perplexity" in facts:
        console.print(f"  perplexity: {facts['full_perplexity']:.2f} in full")
    console.print(f"kept in {measured.path}, the store's default from now on; drawn in {measured.picture}")
    return 0

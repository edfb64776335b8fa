"""Elastic fine-tuning: makes the submodels n x m of a fine-tuned model keep its accuracy (DynaBERT's recipe).

    python -m eval.train_elastic --model CHECKPOINT --task sst2 --dataset ../shared/glue --output DIR

puts the elastic checkpoint and its store into DIR. Heads and neurons are put in order of importance; then two phases
train first widths, then widths and depths, with the fine-tuned model as teacher. `--fidelities 2 3 4 5 6 32` trains
through the quantizer, too. An interrupted run goes on with `--resume_from_checkpoint true`. On several devices:

    accelerate launch --multi_gpu --num_processes 2 -m eval.train_elastic ...

All arguments of Transformers' Trainer are options.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from transformers import HfArgumentParser

from eval.command import one_line_errors
from eval.elastic.arguments import ElasticArguments, ElasticTrainingArguments
from eval.elastic.run import CARD, CHECKPOINT, ElasticRun


def main(words: Sequence[str] | None = None) -> None:
    parser = HfArgumentParser(
        [ElasticArguments, ElasticTrainingArguments],
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    with one_line_errors(parser):
        arguments, training = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
        run = ElasticRun(arguments, training)
    store = run.make()
    if run.state.is_main_process:
        print((run.output / CHECKPOINT / CARD).read_text())
        print(f"{run.output / CHECKPOINT} is the elastic model, {store.path} its store.")


if __name__ == "__main__":
    main()

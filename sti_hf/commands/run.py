"""`sti run`."""

from __future__ import annotations

import argparse
from typing import Any

from sti_hf.commands.options import add_config_options, add_verb, measured_profile, print_json, sti_config
from sti_hf.drawing import draw_run, terminal
from sti_hf.errors import InputError
from sti_hf.profiling.examples import longest_input
from sti_hf.shards.store import ShardStore

PIPELINE_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
}
"""Task of `sti run` by the ending of the model class; every other class gives embeddings."""


def add(verbs: Any) -> None:
    """Defines the verb."""
    parser = add_verb(verbs, "run", run, "run texts through a store")
    add_config_options(parser)
    parser.add_argument("texts", metavar="TEXT", nargs="+")


def run(options: argparse.Namespace) -> int:
    """Runs the verb."""
    from transformers import AutoConfig, pipeline

    from sti_hf.integrations.tokenizer import load_tokenizer

    build_pipeline: Any = pipeline
    chosen = sti_config(options)
    store = ShardStore.open(options.store)
    tokenizer: Any = load_tokenizer(store)
    config = AutoConfig.from_pretrained(options.store)
    if options.seq_len is None:
        tokens = max(len(tokenizer(text)["input_ids"]) for text in options.texts)
        chosen = chosen.replaced(seq_len=min(tokens, config.max_position_embeddings))
    measured_profile(options, store, chosen.compute_dtype)
    architecture = (config.architectures or [""])[0]
    task = next((t for ending, t in PIPELINE_TASKS.items() if architecture.endswith(ending)), "feature-extraction")
    pipe = build_pipeline(
        task, model=str(options.store), tokenizer=tokenizer, model_kwargs={"sti_config": chosen}, device="cpu"
    )
    try:
        answers = [_answer(pipe, text) for text in options.texts]
        if options.json:
            print_json({"task": task, "answers": answers, "memory": pipe.model.sti.memory()})
        else:
            draw_run(terminal(), task, answers, pipe.model.sti)
    finally:
        pipe.model.sti.close()
    return 0


def _answer(pipe: Any, text: str) -> dict[str, Any]:
    """What the pipeline says of a text, and what it took. Raises `ValueError` for a text that it cannot take."""
    longest = longest_input(pipe.model)
    tokens = len(pipe.tokenizer(text)["input_ids"])
    if tokens > longest:
        raise InputError(f"A text has {tokens} tokens, and this model takes {longest}; shorten it.")
    if pipe.task == "fill-mask" and pipe.tokenizer.mask_token not in text:
        raise InputError(f"This model fills in words: write {pipe.tokenizer.mask_token} where one is missing.")
    output = pipe(text)
    if pipe.task == "feature-extraction":
        output = [sum(column) / len(column) for column in zip(*output[0])]
    timeline = pipe.model.sti.last_run
    return {"text": text, "output": output, "seconds": timeline.total, "bytes_read": timeline.bytes_read}

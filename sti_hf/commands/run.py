"""`sti run`."""

from __future__ import annotations

import argparse
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from sti_hf.commands.options import add_config_options, add_verb, measured_profile, print_json, sti_config
from sti_hf.config import STIConfig
from sti_hf.drawing import draw_answer, draw_memory, draw_text, terminal
from sti_hf.errors import InputError, UnsupportedUseError
from sti_hf.integrations.model_classes import bare_class, stock_class
from sti_hf.model import architecture_of
from sti_hf.runtime.generation import Generation
from sti_hf.shards.store import ShardStore

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PIPELINE_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}
"""Task of `sti run` by the ending of the model class; every other class gives embeddings."""

EMBEDDING_TASK = "feature-extraction"
GENERATION_TASK = "text-generation"


def add(verbs: Any) -> None:
    """Defines the verb."""
    parser = add_verb(verbs, "run", run, "run texts through a store")
    add_config_options(parser)
    parser.add_argument("texts", metavar="TEXT", nargs="+")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=50, help="of language models, a text (50)")


def run(options: argparse.Namespace) -> int:
    """Runs the verb."""
    from transformers import AutoConfig, pipeline

    from sti_hf.integrations.tokenizer import load_tokenizer

    build_pipeline: Any = pipeline
    chosen = sti_config(options)
    if options.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be at least 1, not {options.max_new_tokens}.")
    store = ShardStore.open(options.store)
    architecture = architecture_of(store.stack.model_type)
    if "input_ids" not in architecture.main_inputs:
        raise UnsupportedUseError(
            f"This model takes {architecture.main_inputs[0]}, and sti run texts: use it in Python, with pipeline."
        )
    tokenizer: Any = load_tokenizer(store)
    config = AutoConfig.from_pretrained(options.store)
    task = _task(config)
    tokens = [_tokens(tokenizer, task, text) for text in options.texts]
    longest = architecture.longest_input(config)
    if max(tokens) > longest:
        raise InputError(f"A text has {max(tokens)} tokens, and this model takes {longest}; shorten it.")
    if options.seq_len is None:
        chosen = chosen.replaced(seq_len=max(tokens))
    measured_profile(options, store, chosen.compute_dtype)
    # Not by the pipeline, which would answer an error with another class of models.
    model = _load(store, task, config, chosen)
    try:
        pipe = build_pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
        if options.json:
            answers = [_answer(pipe, text, options.max_new_tokens) for text in options.texts]
            print_json({"task": task, "answers": answers, "memory": model.sti.memory()})
        else:
            _draw(pipe, options)
    finally:
        model.sti.close()
    return 0


def _task(config: PreTrainedConfig) -> str:
    architecture = (config.architectures or [""])[0]
    return next((task for ending, task in PIPELINE_TASKS.items() if architecture.endswith(ending)), EMBEDDING_TASK)


def _load(store: ShardStore, task: str, config: PreTrainedConfig, chosen: STIConfig) -> Any:
    """The model for a task: for embeddings the encoder, without a pooler that they do not need."""
    model_class = bare_class(config) if task == EMBEDDING_TASK else stock_class(config)
    poolers = inspect.signature(model_class.__init__).parameters.keys() & {"add_pooling_layer"}
    without_pooler: Any = dict.fromkeys(poolers if task == EMBEDDING_TASK else (), False)
    return model_class.from_pretrained(store.path, sti_config=chosen, **without_pooler)


def _tokens(tokenizer: Any, task: str, text: str) -> int:
    """Number of tokens of a text. Raises `InputError` for one about which there is nothing to say."""
    if not tokenizer(text, add_special_tokens=False)["input_ids"]:
        raise InputError(f"The text {text!r} is empty: give one with words in it.")
    if task == "fill-mask" and tokenizer.mask_token not in text:
        raise InputError(f"This model fills in words: write {tokenizer.mask_token} where one is missing.")
    return len(tokenizer(text)["input_ids"])


def _draw(pipe: Any, options: argparse.Namespace) -> None:
    """Each text with its answer, whose words come as they are written."""
    from transformers import TextStreamer

    console = terminal()
    for text in options.texts:
        draw_text(console, text)
        words = TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
        draw_answer(console, pipe.task, _answer(pipe, text, options.max_new_tokens, words))
    draw_memory(console, pipe.model.sti)


def _answer(pipe: Any, text: str, max_new_tokens: int, streamer: Any = None) -> dict[str, Any]:
    """What the pipeline says of a text, and what that took; `streamer` takes its words as they are written."""
    if pipe.task == GENERATION_TASK:
        output = pipe(text, max_new_tokens=max_new_tokens, do_sample=False, return_full_text=False, streamer=streamer)
        return {"text": text, "output": output, **_writing(pipe.model.sti.last_generation)}
    output = pipe(text)
    if pipe.task == EMBEDDING_TASK:
        output = [sum(column) / len(column) for column in zip(*output[0])]
    timeline = pipe.model.sti.last_run
    return {"text": text, "output": output, "seconds": timeline.total, "bytes_read": timeline.bytes_read}


def _writing(generation: Generation) -> dict[str, Any]:
    """What a text took; `token_seconds` is the median of the tokens after the first, None where there is none."""
    each = generation.token_seconds
    return {
        "seconds": generation.time_to_first_token + float(each.sum()),
        "time_to_first_token": generation.time_to_first_token,
        "token_seconds": float(np.median(each)) if len(each) else None,
        "bytes_read": generation.bytes_read,
    }

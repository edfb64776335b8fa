"""Language modelling as a task: windows of a file, and scores, against stock Transformers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertLMHeadModel, LlamaForCausalLM, PreTrainedModel
from transformers.models.bert import BertForMaskedLM

from sti_hf.profiling.language import LanguageEvaluation, check_causal, load_windows, window_batches
from tests.integrations.checkpoints import checkpoint
from tests.models import tiny_inputs, tiny_model
from tests.tasks import sentences

TOKENS = 12


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    return AutoTokenizer.from_pretrained(checkpoint(LlamaForCausalLM, tmp_path_factory.mktemp("language") / "model"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(sentences(40)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model(LlamaForCausalLM)


def test_windows_are_the_running_text(tokenizer: object, file: Path) -> None:
    ids = tokenizer(file.read_text(), add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    windows = load_windows(file, tokenizer, tokens=TOKENS, samples=None)  # type: ignore[arg-type]
    own = TOKENS - 1
    assert windows.shape == (len(ids) // own, TOKENS)
    assert (windows[:, 0] == 2).all(), "each begins as the tokenizer begins a text"
    assert windows[:, 1:].flatten().tolist() == ids[: len(windows) * own]


def test_halves_have_no_window_in_common(tokenizer: object, file: Path) -> None:
    whole, first, second = (
        load_windows(file, tokenizer, tokens=TOKENS, part=part, samples=None)  # type: ignore[arg-type]
        for part in ("all", "first", "second")
    )
    found = [set(map(tuple, each.tolist())) for each in (whole, first, second)]
    assert found[1] | found[2] == found[0]
    assert not found[1] & found[2]
    few = load_windows(file, tokenizer, tokens=TOKENS, samples=3, seed=1)  # type: ignore[arg-type]
    again = load_windows(file, tokenizer, tokens=TOKENS, samples=3, seed=1)  # type: ignore[arg-type]
    assert few.shape == (3, TOKENS)
    assert torch.equal(few, again)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "There is no text file"),
        (b"\xff\xfe\x00a", {}, "is not a text file in UTF-8"),
        (b"word20 " * 12, {}, "has 12 tokens, which make 1 windows of 12"),
        (b"", {}, "has 0 tokens"),
        (b"word20 " * 99, {"samples": 1}, "at least 2 are needed"),
        (b"word20 " * 99, {"samples": 0}, "samples must be at least 1"),
        (b"word20 " * 99, {"tokens": 2}, "must have at least 3 tokens"),
        (b"word20 " * 99, {"part": "third"}, "part must be one of"),
    ],
)
def test_files_that_will_not_do(
    tokenizer: object, tmp_path: Path, content: bytes | None, options: dict[str, object], message: str
) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_windows(file, tokenizer, **{"tokens": TOKENS, **options})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def evaluation_of(model: PreTrainedModel, batch_size: int = 3) -> tuple[LanguageEvaluation, torch.Tensor]:
    windows = tiny_inputs(model, batch=7, padded=False)["input_ids"]
    return LanguageEvaluation.prepare(model, window_batches(windows, batch_size)), windows


@torch.no_grad()
def test_scores_are_the_stock_models_perplexity(model: PreTrainedModel) -> None:
    evaluation, windows = evaluation_of(model)
    full = model(input_ids=windows, labels=windows).loss
    assert evaluation.full_perplexity == pytest.approx(math.exp(full), rel=1e-4)
    other = tiny_model(LlamaForCausalLM, seed=1)
    output = other(input_ids=windows, labels=windows)
    found = evaluation.score(lambda index: other(**evaluation.batches[index].inputs).logits)
    assert found.loss == pytest.approx(float(output.loss), rel=1e-4)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(output.loss), rel=1e-4)
    right = (output.logits[:, :-1].argmax(-1) == windows[:, 1:]).float().mean()
    assert found.metrics["next_token_accuracy"] == pytest.approx(float(right))
    assert found.value == found.metrics["relative_likelihood"] == pytest.approx(min(1, math.exp(full - output.loss)))
    same = evaluation.score(lambda index: model(**evaluation.batches[index].inputs).logits)
    assert same.value == pytest.approx(1)


def test_chance_is_that_of_the_texts_own_frequencies(model: PreTrainedModel) -> None:
    _, windows = evaluation_of(model)
    _, counts = np.unique(windows[:, 1:].numpy(), return_counts=True)
    shares = counts / counts.sum()
    entropy = -(shares * np.log(shares)).sum()
    evaluation = LanguageEvaluation(window_batches(windows, 2), full_loss=entropy - 0.25)
    assert evaluation.chance == pytest.approx(math.exp(-0.25))


def test_a_hopeless_model_has_a_finite_perplexity(model: PreTrainedModel) -> None:
    evaluation, _ = evaluation_of(model)
    found = evaluation.score(lambda index: 1e5 * model(**evaluation.batches[index].inputs).logits)
    assert found.value == 0
    assert math.isfinite(found.metrics["perplexity"])


def test_who_sees_what_follows_is_no_language_model(model: PreTrainedModel) -> None:
    check_causal(model)
    check_causal(tiny_model(BertLMHeadModel))
    for each in (tiny_model(BertLMHeadModel, is_decoder=False), tiny_model(BertForMaskedLM)):
        with pytest.raises(ValueError, match="sees the tokens that follow a position"):
            check_causal(each)

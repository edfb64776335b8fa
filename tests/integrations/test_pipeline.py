"""`pipeline(..., sti_config={...})` and `model_kwargs`, held against the stock pipeline of the same checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
    pipeline,
)

from sti_hf import shard_checkpoint
from sti_hf.errors import ConfigurationError, InfeasibleLatencyError, LoadingError, SourceError, StoreError
from sti_hf.shards.store import RESIDENT_FILE
from tests.integrations.checkpoints import STOCK, checkpoint

TEXTS = ["a cold model answers .", "word20 word30 a cold [MASK]", "."]
MASKED = ["a cold [MASK] .", "[MASK] [MASK] answers"]


def both(task: str, model_class: type[PreTrainedModel], folder: Path, **options: Any) -> tuple[Any, Any]:
    """An elastic and a stock pipeline of one checkpoint."""
    build: Any = pipeline
    source = str(checkpoint(model_class, folder))
    return build(task, model=source, model_kwargs={"sti_config": STOCK, **options}), build(task, model=source)


def check_alike(got: Any, expected: Any) -> None:
    """The same nested lists and dictionaries, numbers to 1e-5."""
    assert type(got) is type(expected)
    if isinstance(got, dict):
        assert got.keys() == expected.keys()
        for name in got:
            check_alike(got[name], expected[name])
    elif isinstance(got, list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected):
            check_alike(one, other)
    elif isinstance(got, float | np.floating):
        assert got == pytest.approx(expected, abs=1e-5)
    else:
        assert got == expected


@pytest.mark.parametrize(
    ("task", "model_class", "texts"),
    [
        ("text-classification", BertForSequenceClassification, TEXTS),
        ("token-classification", BertForTokenClassification, TEXTS),
        ("fill-mask", BertForMaskedLM, MASKED),
        ("feature-extraction", BertModel, TEXTS),
        ("feature-extraction", BertForSequenceClassification, TEXTS),
    ],
    ids=lambda value: getattr(value, "__name__", None) or (value if isinstance(value, str) else ""),
)
def test_answers_are_those_of_the_stock_pipeline(
    task: str, model_class: type[PreTrainedModel], texts: list[str], tmp_path: Path
) -> None:
    elastic, stock = both(task, model_class, tmp_path)
    assert type(elastic) is type(stock)
    assert type(elastic.model) is type(stock.model)
    assert elastic.model.sti.plan.strategy == "preload"
    for text in texts:
        check_alike(elastic(text), stock(text))
    check_alike(elastic(texts), stock(texts))
    elastic.model.sti.close()


def test_a_question_answering_models_embeddings(tmp_path: Path) -> None:
    elastic, stock = both("feature-extraction", BertForQuestionAnswering, tmp_path, add_pooling_layer=False)
    check_alike(elastic(TEXTS[0]), stock(TEXTS[0]))
    elastic.model.sti.close()


def test_batches(tmp_path: Path) -> None:
    elastic, stock = both("text-classification", BertForSequenceClassification, tmp_path)
    for size in (1, 2, 3):
        check_alike(elastic(TEXTS, batch_size=size, top_k=None), stock(TEXTS, batch_size=size, top_k=None))
    elastic.model.sti.close()


def test_a_latency_given_as_text(tmp_path: Path) -> None:
    build: Any = pipeline
    source = str(checkpoint(BertForSequenceClassification, tmp_path))
    config = {"target_latency": "200ms", "preload_budget": "10KB"}
    elastic = build("text-classification", model=source, model_kwargs={"sti_config": config})
    (answer,) = elastic("a cold model answers .")
    assert answer["label"] in ("LABEL_0", "LABEL_1")
    plan = elastic.model.sti.plan
    assert (plan.target_latency, plan.preload_budget) == (0.2, 10_000)
    assert elastic.model.sti.last_run.tokens == 7
    elastic.model.sti.close()


def test_a_wrong_latency(tmp_path: Path) -> None:
    build: Any = pipeline
    source = str(checkpoint(BertForSequenceClassification, tmp_path))
    for options in (
        {"model_kwargs": {"sti_config": {"target_latency": "soon"}}},
        {"sti_config": {"target_latency": "soon"}},
    ):
        with pytest.raises(LoadingError, match=r"^target_latency must be .*, not 'soon'\.$") as error:
            build("text-classification", model=source, **options)
        assert isinstance(error.value.__cause__, ConfigurationError)


def test_a_store_without_more_words(tmp_path: Path) -> None:
    build: Any = pipeline
    source = checkpoint(BertForSequenceClassification, tmp_path / "model")
    store = shard_checkpoint(source, tmp_path / "store", quantizer="gobo")
    elastic = build("text-classification", model=str(store.path))
    assert elastic.model.sti.plan.strategy == "sti"
    assert elastic("a cold model")[0]["label"].startswith("LABEL")
    elastic.model.sti.close()


# Given to `pipeline` itself.


@pytest.mark.parametrize(
    ("task", "model_class", "texts"),
    [
        ("text-classification", BertForSequenceClassification, TEXTS),
        ("token-classification", BertForTokenClassification, TEXTS),
        ("fill-mask", BertForMaskedLM, MASKED),
        ("feature-extraction", BertModel, TEXTS),
        (None, BertForSequenceClassification, TEXTS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sti_config_at_top_level(task: Any, model_class: Any, texts: list[str], tmp_path: Path) -> None:
    build: Any = pipeline
    source = checkpoint(model_class, tmp_path)
    task = task or "sentiment-analysis"
    elastic = build(task, model=source if task == "fill-mask" else str(source), sti_config=STOCK)
    assert elastic.model.sti.plan.strategy == "preload"
    stock = build(task, model=str(source))
    assert not hasattr(stock.model, "sti")
    for text in texts:
        check_alike(elastic(text), stock(text))
    elastic.model.sti.close()


def test_after_it_other_models_are_stock(tmp_path: Path) -> None:
    source = checkpoint(BertForSequenceClassification, tmp_path)
    elastic = pipeline("text-classification", model=str(source), sti_config=STOCK)  # type: ignore[call-overload]
    assert not hasattr(BertForSequenceClassification.from_pretrained(source), "sti")
    elastic.model.sti.close()


# Errors: one sentence, and never another class than the task's.


@pytest.mark.parametrize("elastic", [True, False])
def test_a_model_that_is_loaded_already_cannot_be_configured(elastic: bool, tmp_path: Path) -> None:
    build: Any = pipeline
    source = checkpoint(BertForSequenceClassification, tmp_path)
    model: Any = BertForSequenceClassification.from_pretrained(source, **({"sti_config": STOCK} if elastic else {}))
    tokenizer = AutoTokenizer.from_pretrained(source)
    with pytest.raises(ConfigurationError, match="loaded already"):
        build("text-classification", model=model, tokenizer=tokenizer, sti_config=STOCK)
    if not elastic:
        with pytest.raises(ConfigurationError, match="loaded already"):
            build("text-classification", model=model, tokenizer=tokenizer, model_kwargs={"sti_config": STOCK})
    check_alike(
        build("text-classification", model=model, tokenizer=tokenizer)(TEXTS),
        build("text-classification", model=str(source))(TEXTS),
    )
    if elastic:
        model.sti.close()


IMPORTED_LATE = """
import sys
import sti_hf
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification
assert "transformers.pipelines.base" not in sys.modules
from transformers import pipeline
source = sys.argv[1]
model = BertForSequenceClassification.from_pretrained(source)
try:
    pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(source), sti_config={})
except sti_hf.STIError:
    raise SystemExit(0)
raise SystemExit(1)
"""


def test_also_where_pipelines_are_imported_after_sti_hf(tmp_path: Path) -> None:
    source = checkpoint(BertForSequenceClassification, tmp_path)
    assert subprocess.run([sys.executable, "-c", IMPORTED_LATE, str(source)]).returncode == 0


@pytest.mark.parametrize("at_top_level", [True, False])
def test_a_latency_that_cannot_be_met(at_top_level: bool, tmp_path: Path) -> None:
    build: Any = pipeline
    source = str(checkpoint(BertForSequenceClassification, tmp_path))
    config = {"target_latency": "1us", "strict": True, "quantizer": "gobo"}
    options = {"sti_config": config} if at_top_level else {"model_kwargs": {"sti_config": config}}
    with pytest.raises(LoadingError) as error:
        build("text-classification", model=source, **options)
    assert isinstance(error.value.__cause__, InfeasibleLatencyError)
    assert "meets the target latency" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("task", "model_class", "sentence"),
    [
        ("text-classification", BertModel, r"lacks 2 of the weights of BertForSequenceClassification"),
        (
            "feature-extraction",
            BertForQuestionAnswering,
            r"lacks 2 .* of BertModel .*add_pooling_layer=False",
        ),
    ],
)
def test_a_task_that_the_model_is_not_for(task: Any, model_class: Any, sentence: str, tmp_path: Path) -> None:
    build: Any = pipeline
    source = checkpoint(model_class, tmp_path / "model")
    store = shard_checkpoint(source, tmp_path / "store", quantizer="gobo").path
    for place, kind in ((source, SourceError), (store, StoreError)):
        with pytest.raises(LoadingError, match=sentence) as error:
            build(task, model=str(place), sti_config=STOCK)
        assert isinstance(error.value.__cause__, kind)


def test_a_store_whose_weights_are_damaged(tmp_path: Path) -> None:
    build: Any = pipeline
    source = checkpoint(BertForSequenceClassification, tmp_path / "model")
    store = shard_checkpoint(source, tmp_path / "store", quantizer="gobo").path
    content = bytearray((store / RESIDENT_FILE).read_bytes())
    content[-1] ^= 1
    (store / RESIDENT_FILE).write_bytes(content)
    with pytest.raises(LoadingError, match=r"resident\.safetensors is damaged.*sti verify"):
        build("text-classification", model=str(store))

"""Calibration text, from where users keep it to a store made with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    BertTokenizer,
    DistilBertForSequenceClassification,
    LlamaForCausalLM,
)

from sti_hf import cli, shard_checkpoint
from sti_hf.integrations import calibration_text
from sti_hf.integrations.calibration_text import CalibrationText, calibration_batches
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.shards.quantizers.calibrated import calibration
from sti_hf.shards.reading import read_full_layer
from tests.commands import Sti, done
from tests.integrations.checkpoints import WORDS, checkpoint
from tests.models import tiny_inputs, tiny_model


def sentences(count: int) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 9, (count,), generator=generator).tolist()
    return [" ".join(f"word{int(i)}" for i in torch.randint(12, 60, (n,), generator=generator)) for n in lengths]


def text_file(folder: Path, count: int = 40) -> Path:
    path = folder / "texts.txt"
    path.write_text("\n".join(sentences(count)) + "\n\n")
    return path


def dataset(folder: Path, split: str = "train", **columns: list[object]) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_texts_and_pairs_of_a_file(tmp_path: Path) -> None:
    path = text_file(tmp_path)
    assert CalibrationText(path).read() == [(text,) for text in sentences(40)]
    path.write_text("a\tcold\n\nmodel\tanswers\n")
    assert CalibrationText(path).read() == [("a", "cold"), ("model", "answers")]


def test_samples_are_a_choice_that_the_seed_repeats(tmp_path: Path) -> None:
    path = text_file(tmp_path)
    chosen = [CalibrationText(path, samples=10, seed=seed).read() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) == 10


def test_text_columns_of_a_dataset(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data", idx=[0, 1], one=["a", "b"], label=[0, 1])
    assert CalibrationText(folder).read() == [("a",), ("b",)]
    pairs = dataset(tmp_path / "pairs", split="test", one=["a", "b"], two=["c", "d"], three=["e", "f"])
    assert CalibrationText(pairs, split="test", columns=["three", "one"]).read() == [("e", "a"), ("f", "b")]


def test_bad_text_gets_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    for content, sentence in (("\n \n", "has no text"), ("a\tb\nc\n", "one text on every line")):
        path.write_text(content)
        with pytest.raises(ValueError, match=sentence):
            CalibrationText(path).read()
    path.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        CalibrationText(path).read()
    path.write_text("a\n")
    with pytest.raises(ValueError, match="is a text file"):
        CalibrationText(path, columns=["sentence"]).read()
    with pytest.raises(ValueError, match="samples must be at least 1"):
        CalibrationText(path, samples=0).read()
    data = dataset(tmp_path / "data", one=["a"], two=["b"], three=["c"], number=[1])
    with pytest.raises(ValueError, match="Say which columns"):
        CalibrationText(data).read()
    with pytest.raises(ValueError, match="one text column"):
        CalibrationText(data, columns=["four"]).read()
    with pytest.raises(ValueError, match="are not text"):
        CalibrationText(data, columns=["number"]).read()
    with pytest.raises(ValueError, match="cannot be loaded"):
        CalibrationText(data, split="validation").read()


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, DistilBertForSequenceClassification])
def test_batches_hold_every_text_once_and_few_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_class
) -> None:
    monkeypatch.setattr(calibration_text, "TOKENS_OF_BATCH", 40)
    monkeypatch.setattr(calibration_text, "LONGEST_TEXT", 9)
    tokenizer = BertTokenizer.from_pretrained(checkpoint(model_class, tmp_path / "model"))
    model = tiny_model(model_class)
    texts = [(text,) for text in sentences(30)]
    batches = calibration_batches(texts, tokenizer, model)
    assert all(batch["input_ids"].numel() <= 40 and batch["input_ids"].shape[1] <= 9 for batch in batches)
    seen = sorted(
        tuple(ids[mask == 1].tolist())
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"])
    )
    assert seen == sorted(tuple(tokenizer(text, truncation=True, max_length=9)["input_ids"]) for (text,) in texts)
    model(**batches[0])


def test_language_models_get_windows_of_running_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_text, "WINDOW", 8)
    monkeypatch.setattr(calibration_text, "TOKENS_OF_BATCH", 20)
    tokenizer = BertTokenizer.from_pretrained(checkpoint(BertForSequenceClassification, tmp_path / "model"))
    model = tiny_model(LlamaForCausalLM)
    lines = sentences(30)
    expected = tokenizer("\n".join(lines))["input_ids"]
    batches = calibration_batches([(line,) for line in lines], tokenizer, model)
    assert [batch["input_ids"].shape[1] for batch in batches] == [8] * len(batches)
    assert max(len(batch["input_ids"]) for batch in batches) == 2
    seen = torch.cat([batch["input_ids"].flatten() for batch in batches]).tolist()
    assert seen == expected[: len(seen)]
    assert len(expected) - len(seen) < 8
    assert all(batch["attention_mask"].all() for batch in batches)
    model(**batches[0])
    monkeypatch.setattr(calibration_text, "WINDOWS", 3)
    few = torch.cat([batch["input_ids"] for batch in calibration_batches([(" ".join(lines),)], tokenizer, model)])
    assert len(few) == 3
    (short,) = calibration_batches([("word12 word13",)], tokenizer, model)
    assert short["input_ids"].tolist() == [tokenizer("word12 word13")["input_ids"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_store_made_with_text_is_nearer_to_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(calibration, "ENCODER_TUNING", replace(calibration.ENCODER_TUNING, passes=30))
    model = tiny_model(BertForSequenceClassification).to(dtype)
    source = checkpoint(BertForSequenceClassification, tmp_path / "model")
    model.save_pretrained(source)
    text = CalibrationText(text_file(tmp_path))
    stores = [
        shard_checkpoint(source, tmp_path / name, calibration=given)
        for name, given in (("lloyd", None), ("calibrated", text))
    ]
    assert [store.index.quantizer for store in stores] == ["lloyd", "calibrated"]
    assert torch.equal(read_full_layer(stores[0], 1), read_full_layer(stores[1], 1))
    unseen = tiny_inputs(model, batch=32, seed=9)
    model.float()
    with torch.no_grad():
        full = model.bert(**unseen)[0]
        errors = []
        for store in stores:
            PlanWeights(model, store).set(0 * store.stack.checksums[:, 0].astype(int) + 2)
            errors.append(float((model.bert(**unseen)[0] - full).square().mean()))
    assert errors[1] < errors[0]


def test_shard_with_calibration_on_the_command_line(sti: Sti, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "ENCODER_TUNING", replace(calibration.ENCODER_TUNING, passes=4))
    source = checkpoint(BertForSequenceClassification, tmp_path / "model")
    columns = {"first": ["a cold model"] * 5, "second": list(WORDS[5:10]), "third": ["answers"] * 5}
    data = dataset(tmp_path / "data", split="test", **columns)
    options = ("--calibration", data, "--calibration-split", "test", "--calibration-columns", "first", "second")
    result = done(sti("shard", source, tmp_path / "store", *options, "--calibration-samples", 4, "--json"))
    assert result.json["quantizer"] == "calibrated"
    assert cli.main(["verify", str(tmp_path / "store")]) == 0
    done(sti("run", tmp_path / "store", "a cold model answers", "--target-latency", "1s"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--quantizer", "calibrated"), "needs calibration text"),
        (("--quantizer", "gobo", "--calibration", "TEXT"), "takes no calibration text"),
        (("--calibration", "no/such/text"), "cannot be loaded"),
    ],
)
def test_mistakes_are_told_before_the_work(sti: Sti, tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    source = checkpoint(BertForSequenceClassification, tmp_path / "model")
    text = str(text_file(tmp_path))
    result = sti("shard", source, tmp_path / "store", *(text if option == "TEXT" else option for option in options))
    assert result.status == 2
    assert sentence in result.err
    assert not (tmp_path / "store").exists()

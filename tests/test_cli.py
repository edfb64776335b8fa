"""The `sti` command, as a person and as a script use it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2LMHeadModel,
    RobertaModel,
    pipeline,
)

from sti_hf import ShardStore, shard_checkpoint
from sti_hf.integrations.tokenizer import TOKENIZER_FILES
from sti_hf.shards.store import RESIDENT_FILE
from sti_hf.shards.verification import verify_store
from tests.commands import Result, Sti, done
from tests.integrations.checkpoints import checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(BertForSequenceClassification, tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture(scope="module")
def store(model: Path) -> Path:
    return shard_checkpoint(model, model.parent / "store", quantizer="gobo").path


def store_of(model_class: Any, folder: Path, **overrides: Any) -> Path:
    source = checkpoint(model_class, folder / "model", **overrides)
    return shard_checkpoint(source, folder / "store", quantizer="gobo").path


# sti shard


def test_shard(sti: Sti, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a [bold]store:star:"  # what rich would take for markup
    result = done(sti("shard", model, folder))
    opened = ShardStore.open(folder)
    assert verify_store(opened) == []
    assert f"{folder}: 3 x 4 shards" in result.out
    assert [line.split()[3] for line in result.out.splitlines()[1:]] == ["2", "3", "4", "5", "6", "32"]


def test_shard_for_a_script(sti: Sti, model: Path, tmp_path: Path) -> None:
    printed = done(sti("shard", model, tmp_path / "store", "--quantizer", "gobo", "--no-full", "--json")).json
    opened = ShardStore.open(tmp_path / "store")
    assert printed["store"] == str(tmp_path / "store")
    assert (printed["model_type"], printed["quantizer"]) == ("bert", "gobo")
    assert (printed["layers"], printed["slices"]) == (3, 4)
    assert printed["fidelities"] == [2, 3, 4, 5, 6] == list(opened.fidelities)
    assert printed["bytes"] == sum(opened.index.files.values())
    assert printed["bytes_by_fidelity"] == {str(bits): opened.shard_bytes(bits) for bits in opened.fidelities}


def test_an_interruption(sti: Sti, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sti_hf.shards.stack_writing.write_layer", interrupted)
    assert sti("shard", model, tmp_path / "store") == Result(130, "", "sti: interrupted\n")
    assert list(tmp_path.iterdir()) == []


# sti run


def stock_answers(task: str, folder: Path, texts: tuple[str, ...]) -> Any:
    """Stock pipeline answers, each text for itself."""
    build: Any = pipeline
    pipe = build(task, model=str(folder / "model"))
    return [pipe(text) for text in texts]


FULL = ("--strategy", "preload", "--fidelity", "32", "--compute-dtype", "float32", "--json")


def test_run_a_classifier(sti: Sti, tmp_path: Path) -> None:
    store = store_of(BertForSequenceClassification, tmp_path, id2label={0: "bad", 1: "good"})
    texts = ("a cold model answers .", "word20 word30")
    printed = done(sti("run", store, *texts, *FULL)).json
    assert printed["task"] == "text-classification"
    for answer, text, (expected,) in zip(
        printed["answers"], texts, stock_answers("text-classification", tmp_path, texts), strict=True
    ):
        assert answer["text"] == text
        assert answer["output"][0]["label"] == expected["label"]
        assert answer["output"][0]["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert answer["seconds"] > 0
    assert printed["answers"][1]["bytes_read"] == 0, "all of it is preloaded by then"
    assert set(printed["memory"]) == {"resident", "preload", "staging", "working", "cache", "peak"}
    shown = done(sti("run", store, *texts)).out
    lines = shown.splitlines()
    assert lines[0] == texts[0]
    assert lines[3] == texts[1]
    assert lines[1].split()[0] in ("bad", "good")
    assert lines[-1].startswith("memory: resident")


def test_run_an_encoder(sti: Sti, tmp_path: Path) -> None:
    store = store_of(BertModel, tmp_path)
    (answer,) = done(sti("run", store, "a cold model", *FULL)).json["answers"]
    ((vectors,),) = stock_answers("feature-extraction", tmp_path, ("a cold model",))
    assert np.allclose(answer["output"], np.mean(vectors, axis=0), atol=1e-5)
    assert "embedding of 32 values" in done(sti("run", store, "a cold model")).out


def test_run_a_masked_language_model(sti: Sti, tmp_path: Path) -> None:
    store = store_of(BertForMaskedLM, tmp_path)
    texts = ("a [MASK] model", "[MASK] [MASK] answers")
    printed = done(sti("run", store, *texts, *FULL)).json
    expected = stock_answers("fill-mask", tmp_path, texts)
    assert [one["token"] for one in printed["answers"][0]["output"]] == [one["token"] for one in expected[0]]
    assert len(printed["answers"][1]["output"]) == 2
    shown = done(sti("run", store, *texts)).out.splitlines()
    assert shown[0] == texts[0], "brackets are text, not markup"
    assert len(shown) == 1 + 2 + 1 + 3 + 1
    unmasked = sti("run", store, "a cold model")
    assert unmasked.status == 2
    assert "write [MASK] where one is missing" in unmasked.err


def test_run_a_language_model(sti: Sti, tmp_path: Path) -> None:
    source = checkpoint(GPT2LMHeadModel, tmp_path / "model")
    store = shard_checkpoint(source, tmp_path / "store", quantizer="gobo").path
    options = "--max-new-tokens", 3, "--strategy", "std_pipeline", "--fidelity", 32, "--target-latency", "9s"
    printed = done(sti("run", store, "a cold model", *options, "--json")).json
    build: Any = pipeline
    write = build("text-generation", model=str(source))
    expected = write("a cold model", max_new_tokens=3, do_sample=False, return_full_text=False)
    assert printed["task"] == "text-generation"
    assert printed["answers"][0]["output"] == expected
    shown = done(sti("run", store, "a cold model", *options)).out
    assert expected[0]["generated_text"].strip() in shown and "first token after" in shown and " a token; " in shown


def test_run_a_tagger(sti: Sti, tmp_path: Path) -> None:
    store = store_of(BertForTokenClassification, tmp_path, id2label={0: "NAME", 1: "PLACE"})
    (answer,) = done(sti("run", store, "a cold model", *FULL)).json["answers"]
    ((first, *_),) = stock_answers("token-classification", tmp_path, ("a cold model",))
    assert answer["output"][0]["entity"] == first["entity"]
    assert answer["output"][0]["score"] == pytest.approx(float(first["score"]), abs=1e-5)
    assert "cold: " in done(sti("run", store, "a cold model")).out


@pytest.mark.parametrize(("model_class", "longest"), [(BertModel, 70), (RobertaModel, 68)])
def test_run_texts_up_to_the_longest(sti: Sti, tmp_path: Path, model_class: Any, longest: int) -> None:
    store = store_of(model_class, tmp_path)
    done(sti("run", store, " ".join(["cold"] * (longest - 2))))
    refused = sti("run", store, "a", " ".join(["cold"] * (longest - 1)))
    assert refused.status == 2
    assert f"A text has {longest + 1} tokens, and this model takes {longest}; shorten it." in refused.err


def test_run_a_store_without_tokenizer(sti: Sti, store: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(store, tmp_path / "bare", ignore=shutil.ignore_patterns(*TOKENIZER_FILES))
    refused = sti("run", bare, "a")
    assert refused.status == 2
    assert "has no tokenizer" in refused.err


def test_run_warns_on_stderr(sti: Sti, store: Path) -> None:
    result = sti("run", store, "a", "--json", "--target-latency", "1us")
    assert result.status == 0
    assert result.json["answers"]
    (line,) = result.err.splitlines()
    assert line.startswith("sti: warning: No plan of 16 tokens meets the target latency")


# sti verify


def test_verify(sti: Sti, store: Path, tmp_path: Path) -> None:
    size = sum(ShardStore.open(store).index.files.values())
    assert done(sti("verify", store)).out == f"{store} is intact: {size / 1e6:.1f} MB checked.\n"
    assert done(sti("verify", store, "--json")).json == {"intact": True, "bytes": size, "damage": []}
    broken = shutil.copytree(store, tmp_path / "broken")
    layout = ShardStore.open(store).layouts[1]
    for name, offset in ((RESIDENT_FILE, 700), ("shards-00001-of-00001.safetensors", layout.piece_offset[2, 3] + 1)):
        content = bytearray((broken / name).read_bytes())
        content[offset] ^= 1
        (broken / name).write_bytes(content)
    result = sti("verify", broken)
    assert (result.status, result.err) == (2, "")
    assert [line.split()[1] for line in result.out.splitlines()] == [
        RESIDENT_FILE,
        "shards-00001-of-00001.safetensors",
    ]
    assert "plane 2 of shard (1, 3)" in result.out
    result = sti("verify", broken, "--json")
    assert result.status == 2
    assert result.json["intact"] is False
    assert result.json["damage"][1]["offset"] == layout.piece_offset[2, 3]


# The command itself


@pytest.mark.parametrize(
    "verb", ["shard", "profile-device", "profile-importance", "reorder", "plan", "run", "verify", "report"]
)
def test_help(sti: Sti, verb: str) -> None:
    result = done(sti(verb, "--help"))
    assert result.out.startswith(f"usage: sti {verb}")
    assert "--json" in result.out
    assert verb in done(sti("--help")).out

"""`eval/bench_elastic.py` on a tiny model, against stock models cut down."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from eval import bench_elastic
from sti_hf import ShardStore, shard_checkpoint
from sti_hf.integrations.tokenizer import load_tokenizer
from sti_hf.profiling.examples import load_examples, tokenize
from sti_hf.profiling.tasks import get_task
from tests.eval.conftest import TinyTask
from tests.model.submodels import cut_down
from tests.models import HEADS, LAYERS
from tests.tasks import use_local_metric

DEPTHS, WIDTHS = (2, 3), (1, 3, 4)


@pytest.fixture(autouse=True)
def _progress_bars() -> Iterator[None]:
    yield
    logging.enable_progress_bar()


@pytest.fixture(autouse=True, scope="module")
def _metric_of_the_checkout() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_local_metric(patch, "eval.bench_elastic")
        yield


def test_end_to_end(tiny_sst2: TinyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = [[3, 1, 0, 2]] * LAYERS
    turned = turned_store(tiny_sst2, tmp_path, order)
    files = {name: tmp_path / f"found.{name}" for name in ("json", "md")}
    bench_elastic.main(
        [
            *("--task", "sst2", "--dataset", str(tiny_sst2.data)),
            *("--models", f"ordinary={tiny_sst2.checkpoint}", f"turned={turned.path}"),
            *("--depths", *map(str, DEPTHS), "--widths", *map(str, WIDTHS), "--fidelities", "32", "2"),
            *("--quantizer", "gobo", "--json", str(files["json"]), "--markdown", str(files["md"])),
        ]
    )
    printed = capsys.readouterr().out
    assert files["md"].read_text() == printed
    assert str(tmp_path) not in printed
    assert "## Full fidelity" in printed
    assert "## 2 bits" in printed
    rows = json.loads(files["json"].read_text())["rows"]
    found = {
        (row["model"], row["depth"], row["width"]): row["metrics"]["accuracy"] for row in rows if row["bits"] == 32
    }
    assert len(rows) == 2 * len(found) == 2 * 2 * len(DEPTHS) * len(WIDTHS)
    identity = [list(range(HEADS))] * LAYERS
    for (model, depth, width), value in found.items():
        assert value == pytest.approx(accuracy(tiny_sst2, depth, width, order if model == "turned" else identity))
    assert found["ordinary", LAYERS, HEADS] == found["turned", LAYERS, HEADS] == 100 * 34 / 40
    assert len(set(found.values())) > 3
    line = next(line for line in printed.splitlines() if line.startswith("| turned | 2 |"))
    cells = [float(cell) for cell in line.split("|")[3:-1]]
    assert cells == pytest.approx([found["turned", 2, width] for width in WIDTHS])


def turned_store(tiny: TinyTask, folder: Path, order: list[list[int]]) -> ShardStore:
    """The store of the same model with its slices in another order."""
    from sti_hf.model import get_architecture
    from sti_hf.shards.reorder import reorder_store

    store = shard_checkpoint(tiny.checkpoint, folder / "turned", quantizer="gobo")
    architecture = get_architecture(AutoModelForSequenceClassification.from_pretrained(tiny.checkpoint).config)
    return reorder_store(store, architecture, order)


@torch.no_grad()
def accuracy(tiny: TinyTask, depth: int, width: int, order: list[list[int]]) -> float:
    """Per cent of right answers of the stock model without the rest."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny.checkpoint)
    examples = load_examples(get_task("sst2"), str(tiny.data))
    submodel = cut_down(model, depth, width, order)
    right = np.zeros(len(examples))
    for batch in tokenize(examples, load_tokenizer(tiny.store), model=model):
        right[batch.places] = submodel(**batch.inputs).logits.argmax(1).numpy() == examples.labels[batch.places]
    return 100 * float(right.mean())


def test_what_will_not_do(tiny_sst2: TinyTask, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--task", "sst2", "--dataset", str(tiny_sst2.data), "--models"]
    store = f"one={tiny_sst2.store.path}"
    for options, expected in (
        ([str(tiny_sst2.store.path)], "is not NAME=STORE_OR_CHECKPOINT"),
        ([store], "one has 3 layers, so submodels cannot have 6; name others."),
        ([store, "--depths", "2", "--widths", "5"], "one has 4 slices, so submodels cannot have 5"),
        (["one=/absent/folder"], "There is no folder /absent/folder"),
    ):
        with pytest.raises(SystemExit) as exit:
            bench_elastic.main([*common, *options])
        assert exit.value.code == 2
        assert expected in capsys.readouterr().err


def test_the_default_submodels_are_those_of_a_model_of_six_layers() -> None:
    _, options = bench_elastic.parse(["--models", "a=b", "--task", "sst2"])
    assert list(itertools.product(options.depths, options.widths)) == list(
        itertools.product((3, 4, 5, 6), (3, 6, 9, 12))
    )

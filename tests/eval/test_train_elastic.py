"""`eval/train_elastic.py` on tiny models: from a fine-tuned checkpoint to a store that the runtime executes."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BloomConfig,
    MPNetForSequenceClassification,
)
from transformers.utils import logging

from eval import train_elastic
from eval.elastic.arguments import ElasticArguments
from eval.elastic.distillation import logit_loss
from eval.elastic.phases import last_checkpoint
from eval.elastic.submodels import Submodels
from eval.elastic.trainer import ElasticTrainer
from sti_hf import ShardStore, native
from sti_hf.errors import StoreError
from sti_hf.integrations.store_planner import StorePlanner
from sti_hf.model import Grid
from sti_hf.shards.index import StoreIndex
from sti_hf.shards.layout import FULL
from tests.integrations.checkpoints import DEVICE
from tests.models import HEADS, LAYERS, tiny_inputs
from tests.runtime.sessions import plan_of, running
from tests.tasks import task_for, use_local_metric

STEPS = ["--max_steps", "8", "--per_device_train_batch_size", "4", "--learning_rate", "1e-3", "--warmup_steps", "0"]
EVERY_FOUR = ["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "4", "--save_steps", "4"]


@pytest.fixture(autouse=True, scope="module")
def _metric_of_the_checkout() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_local_metric(patch, "eval.elastic.run")
        yield


@pytest.fixture(autouse=True)
def _progress_bars() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return task_for(BertForSequenceClassification, tmp_path_factory.mktemp("bert"), train=60)


def train(source: Path, data: Path, output: Path, *options: str) -> Path:
    """Runs the command."""
    words = ["--model", str(source), "--task", "sst2", "--dataset", str(data), "--output", str(output)]
    train_elastic.main([*words, *STEPS, *options])
    return output


@pytest.fixture(scope="module", params=[BertForSequenceClassification, MPNetForSequenceClassification])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The checkpoint, and what training in low fidelities, too, made of it."""
    folder = tmp_path_factory.mktemp("trained")
    source, data = task_for(request.param, folder, train=60)
    return source, train(source, data, folder / "elastic", "--fidelities", "2", "4", "32")


def test_the_submodel_trained_is_the_submodel_executed(trained: tuple[Path, Path]) -> None:
    source, output = trained
    stock = AutoModelForSequenceClassification.from_pretrained(output / "checkpoint").eval()
    assert type(stock) is type(AutoModelForSequenceClassification.from_pretrained(source))
    store, inputs = ShardStore.open(output / "store"), tiny_inputs(stock)
    with torch.no_grad():
        whole = stock(**inputs).logits
        submodels = Submodels(stock)
        for depth in range(1, LAYERS + 1):
            for width in range(1, HEADS + 1):
                bits = np.zeros((LAYERS, HEADS), dtype=np.int64)
                bits[:depth, :width] = FULL
                executed = running(store, plan_of(store, bits, 0.3))
                assert executed.sti.plan.submodel == (depth, width)
                logits = submodels.run(inputs, width, [depth]).logits[depth]
                assert torch.allclose(executed(**inputs).logits, logits, atol=1e-5)
                executed.sti.close()
    assert torch.allclose(logits, whole, atol=1e-6)
    untrained = AutoModelForSequenceClassification.from_pretrained(source)
    assert not torch.allclose(untrained(**inputs).logits, whole, atol=1e-3)


def test_what_a_run_leaves(trained: tuple[Path, Path]) -> None:
    source, output = trained
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint", "store"]
    card = (output / "checkpoint" / "README.md").read_text()
    assert (output / "store" / "README.md").read_text() == card
    assert "| n = 3 |" in card
    assert "fidelities: [2, 4, 32]" in card
    assert str(output.parent) not in card
    store = ShardStore.open(output / "store")
    assert store.index.depth_rule == "first"
    assert StorePlanner(store, DEVICE).is_elastic, "so that parts of it may run that were not measured"
    tokens = AutoTokenizer.from_pretrained(output / "store")("word20 word21").input_ids
    assert tokens == AutoTokenizer.from_pretrained(source)("word20 word21").input_ids


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    bert: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = train(*bert, tmp_path / "through", *EVERY_FOUR)

    stock_loss = ElasticTrainer.compute_loss

    def interrupted(self: ElasticTrainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 6 and self.depths != [LAYERS]:
            raise KeyboardInterrupt
        return stock_loss(self, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ElasticTrainer, "compute_loss", interrupted)
        train(*bert, tmp_path / "resumed", *EVERY_FOUR)
    assert not (tmp_path / "resumed" / "store").exists()
    steps: list[int] = []

    def counted(self: ElasticTrainer, *arguments: Any, **options: Any) -> Any:
        steps.append(self.state.global_step)
        return stock_loss(self, *arguments, **options)

    monkeypatch.setattr(ElasticTrainer, "compute_loss", counted)
    resumed = train(*bert, tmp_path / "resumed", *EVERY_FOUR, "--resume_from_checkpoint", "true")
    assert steps == [4, 5, 6, 7], "what is done is not done again"
    one, other = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (through, resumed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_stops_when_it_gets_no_better(
    bert: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        "eval.elastic.trainer.submodel_scores",
        lambda submodels, evaluation, widths, depths: seen.append(1) or {(1, 1): 0.5},
    )
    often = ["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "1", "--save_steps", "1"]
    train(*bert, tmp_path / "elastic", *often, "--patience", "2")
    assert len(seen) == 2 * 3, "in both phases: the first, and two no better"


def test_submodels_come_nearer_to_their_teacher(trained: tuple[Path, Path]) -> None:
    source, output = trained
    teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(folder) for folder in (source, output / "checkpoint")
    )
    inputs = tiny_inputs(teacher, batch=40)

    @torch.no_grad()
    def distance(model: Any) -> float:
        """Mean over all submodels that were trained."""
        expected = teacher(**inputs).logits
        submodels = Submodels(copy.deepcopy(model))
        outputs = [submodels.run(inputs, width, [2, 3]) for width in range(1, HEADS + 1)]
        return float(np.mean([logit_loss(one, expected) for of in outputs for one in of.logits.values()]))

    assert distance(student) < 0.8 * distance(teacher)


def test_defaults_are_what_the_store_is_profiled_for() -> None:
    arguments = ElasticArguments(model="m", task="sst2")
    grid = Grid(6, 12, 384, (("q", 32),))
    assert arguments.widths_of(grid) == [3, 6, 9, 12]
    assert arguments.depths_of(grid) == [3, 4, 5, 6]
    assert arguments.depths_of(Grid(1, 2, 8, (("q", 4),))) == [1]


def test_half_written_checkpoints_are_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "absent") is None
    for step in (8, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (8, 10):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def refused(capsys: pytest.CaptureFixture[str], source: Path, data: Path, output: Path, *options: str) -> str:
    """What is said, in one line, of what will not do."""
    with pytest.raises(SystemExit) as exit:
        train(source, data, output, *options)
    assert exit.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error:" in message
    assert not (output / "training").exists()
    return message


def test_what_will_not_do(bert: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, data = bert
    output = tmp_path / "elastic"
    assert "Task stsb has 1 output (a regression), and the head" in refused(
        capsys, source, data, output, "--task", "stsb"
    )
    assert "There is no task 'sst3'" in refused(capsys, source, data, output, "--task", "sst3")
    BloomConfig(architectures=["BloomForSequenceClassification"]).save_pretrained(tmp_path / "bloom")
    assert "Models of type 'bloom' are not supported" in refused(capsys, tmp_path / "bloom", data, output)
    (tmp_path / "data").mkdir()
    shutil.copy(data / "validation.jsonl", tmp_path / "data")
    message = refused(capsys, source, tmp_path / "data", output)
    assert "cannot be loaded" in message
    assert "train" in message
    for options, expected in (
        (["--widths", "2", "5"], "widths must be 1 to 4 for this model, not 5"),
        (["--depths", "0"], "depths must be 1 to 3 for this model, not 0"),
        (["--fidelities", "2", "7"], "There is no fidelity of 7 bits"),
        (["--activation_checkpointing", "true"], "gradient_checkpointing runs layers again"),
        (["--dropout", "1"], "dropout must be at least 0 and below 1"),
        (["--held_out", "0"], "held_out must be at least 1"),
        (["--train_samples", "9"], "too few to train on"),
    ):
        assert expected in refused(capsys, source, data, output, *options)
    assert not output.exists()
    (output / "something").mkdir(parents=True)
    assert "is not empty; choose another output folder" in refused(capsys, source, data, output)


def test_a_finished_run_is_left_alone(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, output = trained
    data = source.parent / "data"
    for options in ([], ["--resume_from_checkpoint", "true"]):
        assert "has a finished run" in refused(capsys, source, data, output, *options)
    assert "is a store; give the fine-tuned checkpoint" in refused(
        capsys, output / "store", data, output.with_name("other")
    )


def test_stores_from_before_the_rule_was_recorded(trained: tuple[Path, Path]) -> None:
    outer = json.loads((trained[1] / "store" / "sti.json").read_text())

    def reread(change: Callable[[dict[str, Any]], Any]) -> StoreIndex:
        content = json.loads(outer["index"])
        change(content)
        body = json.dumps(content, sort_keys=True)
        return StoreIndex.from_json(json.dumps({**outer, "index": body, "checksum": native.crc32c(body.encode())}))

    assert reread(lambda content: content.pop("depth_rule")).depth_rule == "first"
    with pytest.raises(StoreError, match="keep layers by the rule 'even'"):
        reread(lambda content: content.update(depth_rule="even"))

"""The commands of `examples/elastic_sst2.md`, run on a tiny model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification
from transformers.utils import logging

from eval import bench_elastic, train_elastic
from sti_hf import ShardStore, cli
from sti_hf.planning.importance_file import read_profile, submodel_accuracy
from tests.integrations.checkpoints import use_known_device
from tests.models import HEADS, LAYERS
from tests.tasks import task_for, use_local_metric

TEXT = (Path(__file__).parents[2] / "examples" / "elastic_sst2.md").read_text()
COMMANDS = [
    shlex.split(line) for block in re.findall(r"^```\n(.*?)^```$", TEXT, re.M | re.S) for line in block.splitlines()
]
SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "8"]
SMALL = ["--depths", "2", "3", "--widths", "1", "4", "--fidelities", "32"]


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use_known_device(monkeypatch)
    use_local_metric(monkeypatch, "eval.elastic.run", "eval.bench_elastic", "sti_hf.integrations.profiled_tasks")
    source, data = task_for(BertForSequenceClassification, tmp_path, train=40)
    paths = {"CHECKPOINT": source, "DATA": data, "ELASTIC": tmp_path / "elastic"}
    verbosity = logging.get_verbosity()
    benches: dict[str, tuple[Callable[[list[str]], object], list[str]]] = {
        "eval.train_elastic": (train_elastic.main, SHORT),
        "eval.bench_elastic": (bench_elastic.main, SMALL),
    }
    try:
        for command in COMMANDS:
            words = [re.sub("|".join(paths), lambda found: str(paths[found[0]]), word) for word in command]
            if command[0] == "sti":
                assert cli.main(words[1:]) == 0, capsys.readouterr().err
            else:
                main, short = benches.pop(command[2])
                main([*words[3:], *short])
            assert capsys.readouterr().out, command
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    assert not benches, "both are in the text"
    store = ShardStore.open(tmp_path / "elastic" / "store")
    _, facts = read_profile(store, "sst2")
    assert (LAYERS, HEADS) in submodel_accuracy(store, facts), "the planner knows what submodels are worth"

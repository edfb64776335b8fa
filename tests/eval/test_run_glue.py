"""`eval/run_glue.py` on a tiny model: every strategy, the files, the claims."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.utils import logging

from eval import run_glue
from eval.glue_runs.accuracy import Accuracy
from eval.glue_runs.checks import checks
from eval.glue_runs.row import Row, Streamed
from eval.glue_runs.settings import Setting, admits_uniform, settings_of, usual_targets
from sti_hf import ShardStore, STIConfig
from sti_hf.config import STRATEGIES
from sti_hf.integrations.store_planner import plan_store
from sti_hf.planning import Workload
from sti_hf.planning.exhaustive import ExhaustiveImportance
from sti_hf.planning.importance_file import write_profile
from tests.eval.conftest import TinyTask
from tests.integrations.checkpoints import DEVICE, use_known_device

QUICK = ("--seq-len", "16", "--runs", "2", "--streamed", "4")


@pytest.fixture(autouse=True)
def _quiet_and_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_known_device(monkeypatch)
    monkeypatch.setattr(run_glue, "warm_up", lambda *arguments, **options: None)
    yield
    logging.enable_progress_bar()


def profiled(store: ShardStore, folder: Path, part: str = "first", **changes: Any) -> ShardStore:
    """A copy of a store with a profile called "sst2"."""
    copy = ShardStore.open(shutil.copytree(store.path, folder / "store"))
    scores = np.random.default_rng(0).random((copy.grid.layers, copy.grid.slices))
    facts = {"task": "sst2", "split": "validation", "part": part, "seed": 0, "sentences": 20}
    write_profile(copy, "sst2", ExhaustiveImportance(scores, 1 - scores, 2, 0.0, 1.0), facts | changes)
    return copy


def test_end_to_end(tiny_sst2: TinyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = profiled(tiny_sst2.store, tmp_path)
    arguments = ["--store", str(store.path), "--tasks", "sst2", "--dataset", str(tiny_sst2.data)]
    arguments += ["--preload-budgets", "0", "8kB", "--fidelities", "2", "32", "--output", str(tmp_path / "results")]
    run_glue.main([*arguments, "--targets", "10us", "5ms", "1s", *QUICK])
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "results" / "store-sst2.json").read_text())
    assert (tmp_path / "results" / "store-sst2.md").read_text() == printed
    with Image.open(tmp_path / "results" / "store-sst2.png") as picture:
        assert picture.width > 1000
    assert content["facts"]["importance"] == "sst2 (exhaustive, 20 sentences of part 'first')"
    assert "20 sentences, part 'second' of split validation" in content["facts"]["metric"]
    assert str(tmp_path) not in printed
    rows = content["rows"]
    ours = [row for row in rows if row["setting"]["strategy"] == "sti"]
    assert len(ours) == 3 * 2
    assert len(rows) == len(ours) + 3 * 2
    assert [row["feasible"] for row in ours] == [False, False, True, True, True, True]
    assert all(row["as_planned"] for row in rows)
    assert all(row["streamed"]["same"] == row["streamed"]["sentences"] == 4 for row in rows)
    assert max(row["streamed"]["largest_change"] for row in rows) < 1e-3
    assert {len(row["cold"]) for row in rows} == {2}
    by_name = {(row["setting"]["strategy"], row["setting"]["fidelity"]): row for row in rows}
    full = by_name["preload", 32]
    assert full["memory"]["peak"] > by_name["std_pipeline", 2]["memory"]["peak"]
    assert full["accuracy"]["agreement"] == 100
    assert full["bytes_read"] == 0
    assert by_name["load_exec", 32]["bytes_read"] > by_name["load_exec", 2]["bytes_read"] > 0
    assert {row["accuracy"]["metric"] for name, row in by_name.items() if name[1] == 32} == {
        full["accuracy"]["metric"]
    }
    streamed = content["claims"][-1]
    assert (streamed["holds"], streamed["figures"].split(",")[0]) == (
        True,
        f"{4 * len(rows)} of {4 * len(rows)} answers",
    )
    assert all(f"| {claim['claim']} |" in printed for claim in content["claims"])


def test_a_users_mistakes(tiny_sst2: TinyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = profiled(tiny_sst2.store, tmp_path, part="all")
    data = ("--dataset", str(tiny_sst2.data))
    for arguments, message in (
        (("--store", store.path, "--tasks", "sst2", *data), "measured on the whole of split validation"),
        (("--store", tmp_path, "--tasks", "sst2", *data), "is not a store"),
        (("--store", store.path, "--tasks", "mnli", *data), "The dataset"),
        (
            ("--store", store.path, "--tasks", "sst2", "--importance", "none", *data),
            "has no importance profile 'none'",
        ),
        (("--store", store.path, "--tasks", "sst2", "--targets", "0ms"), "target_latency must be positive"),
    ):
        with pytest.raises(SystemExit) as exit:
            run_glue.main([str(argument) for argument in arguments])
        assert exit.value.code == 2
        assert message.replace("be positive", "be a positive") in capsys.readouterr().err.splitlines()[-1]


def test_settings() -> None:
    settings = settings_of(STRATEGIES, (2, 32), (0.1, 0.2), (0, 5))
    assert [setting.strategy for setting in settings[:4]] == ["sti"] * 4
    assert {(setting.target, setting.preload_budget) for setting in settings[:4]} == {
        (0.1, 0),
        (0.1, 5),
        (0.2, 0),
        (0.2, 5),
    }
    assert {(setting.strategy, setting.fidelity) for setting in settings[4:]} == {
        (name, bits) for name in STRATEGIES if name != "sti" for bits in (2, 32)
    }
    assert settings_of(("preload",), (4,), (0.1,), (0,)) == [Setting("preload", 4)]


def test_usual_targets_reach_from_too_short_to_ample(tiny_sst2: TinyTask) -> None:
    store, slow = tiny_sst2.store, replace(DEVICE, bytes_per_second=1e6)
    targets = usual_targets(store, slow, 16, budget=9000)
    assert targets == sorted(targets)
    smallest = plan_store(
        store, slow, STIConfig(targets[0], 9000, importance="default", submodels="any"), Workload(16)
    )
    assert not smallest.feasible
    assert admits_uniform(store, slow, targets[-1], 0, 16, 32)
    assert any(
        admits_uniform(store, slow, target, 0, 16, 2) and not admits_uniform(store, slow, target, 0, 16, 3)
        for target in targets
    )


# The claims, on figures made up.


def row(setting: Setting, metric: float, predicted: float, cold: float, peak: int = 10**6, bits: float = 4.0) -> Row:
    """A row with what the claims are about."""
    return Row(
        setting=setting,
        feasible=None if setting.target is None else predicted <= setting.target,
        predicted=predicted,
        submodel=(1, 1),
        mean_bits=float(setting.fidelity or bits),
        fidelity_counts={},
        admits_three_bits=None if setting.target is None else bits >= 3,
        cold=[cold],
        back_to_back=[cold],
        bytes_read=0,
        row_bytes_read=0,
        as_planned=True,
        memory={"peak": peak},
        accuracy=Accuracy(metric, {"accuracy": metric}, 0.1, 100.0, 0.0),
        streamed=None,
    )


def baseline(strategy: str, fidelity: int, metric: float, seconds: float, peak: int = 10**6) -> Row:
    return row(Setting(strategy, fidelity), metric, seconds, seconds, peak)


def ours(target: float, metric: float, bits: float = 4.0, cold: float = 0.001, late: float = 0.0) -> Row:
    return row(Setting("sti", target=target, preload_budget=0), metric, target + late, cold, bits=bits)


BASELINES = [
    baseline("std_pipeline", 2, 80, 0.02),
    baseline("std_pipeline", 3, 86, 0.03),
    baseline("std_pipeline", 4, 85, 0.04),
    baseline("std_pipeline", 32, 90, 0.4),
    baseline("load_exec", 32, 90, 0.5),
    baseline("preload", 32, 90, 0.005, peak=20 * 10**6),
]


def verdicts(rows: list[Row]) -> dict[str, tuple[bool | None, str]]:
    return {check.claim: (check.holds, check.figures) for check in checks(rows)}


def verdict(rows: list[Row], start: str) -> tuple[bool | None, str]:
    (found,) = [value for claim, value in verdicts(rows).items() if start in claim]
    return found


def test_claims_that_hold() -> None:
    rows = [ours(0.01, 50, bits=1, late=0.01), ours(0.02, 82, bits=2), ours(0.04, 89.5), *BASELINES]
    assert [check.claim for check in checks(rows) if check.holds is False] == []
    assert verdict(rows, "within 1.0 points of") == (
        True,
        "1 of 1 T × S; worst −0.5 (89.5 against 90.0) at T 40.0 ms, S 0 MB",
    )
    assert verdict(rows, "tightest T that std")[1] == "+2.0 (82.0 against 80.0 at 2 bits) at 20.0 ms"
    assert verdict(rows, "load_exec with full")[1].startswith("cold p50 500.0 ms, T 20.0 ms; it misses 2 of the 2 T")
    assert verdict(rows, "over sti where")[1].startswith("20.0 MB; 20.0 ×")


@pytest.mark.parametrize(
    "rows, start",
    [
        ([ours(0.04, 88.9)], "within 1.0 points of"),
        ([ours(0.04, 84.6)], "at its highest valid"),
        ([ours(0.04, 85.0)], "best valid fidelity in hindsight"),
        ([ours(0.02, 80.9, bits=2)], "tightest T that std"),
        ([ours(0.6, 90)], "load_exec with full"),
        ([ours(0.6, 90)], "std_pipeline with full"),
        ([ours(0.04, 90, cold=0.041)], "cold median of sti"),
    ],
)
def test_claims_that_fail(rows: list[Row], start: str) -> None:
    assert verdict([*rows, *BASELINES], start)[0] is False


def test_claims_that_cannot_be_told() -> None:
    alone = verdicts([ours(0.02, 82, bits=2)])
    assert {holds for claim, (holds, _) in alone.items() if "cold median" not in claim} == {None}
    assert verdict([ours(0.01, 50, bits=1), *BASELINES], "at its highest valid")[0] is None


def test_streamed_answers_that_differ() -> None:
    rows = [replace(ours(0.02, 82), streamed=Streamed(10, same, 0.1)) for same in (10, 9)]
    assert verdict(rows, "streamed model answers") == (
        False,
        "19 of 20 answers, of 2 plans; a logit changed by 0.1 at most",
    )

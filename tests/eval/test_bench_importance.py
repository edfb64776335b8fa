"""`eval/bench_importance.py` on a tiny model: plans of equal bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers.utils import logging

from eval import bench_importance
from eval.bench_importance import by_chance
from eval.glue_runs.equal_bytes import EqualBytes
from sti_hf import ShardStore
from sti_hf.planning import LayerOrder
from sti_hf.planning.checked import CheckedPlans
from sti_hf.planning.effects import LEVELS, EffectsImportance
from sti_hf.planning.exhaustive import ExhaustiveImportance
from sti_hf.planning.importance_file import write_profile
from tests.eval.conftest import TinyTask
from tests.planning.problems import make_layouts, read_bytes


@pytest.fixture(autouse=True)
def _progress_bars() -> Iterator[None]:
    yield
    logging.enable_progress_bar()


@pytest.mark.parametrize("allocator", ["marginal", "two_pass"])
@pytest.mark.parametrize("average", [2.25, 2.5, 3])
def test_plans_spend_the_bytes_and_no_more(allocator: str, average: float) -> None:
    layouts = make_layouts(4, 6)
    equal = EqualBytes(layouts, average)
    two, three = (sum(read_bytes(layout, layout.pieces_of([bits] * 6)) for layout in layouts) for bits in (2, 3))
    assert equal.budget == int(two + (average - 2) * (three - two))
    scores = np.random.default_rng(0).random((4, 6))
    for importance in (LayerOrder(4), ExhaustiveImportance(scores, scores, 2, 0.0, 0.0)):
        bits = equal.plan(importance, allocator)
        read = sum(read_bytes(layout, layout.pieces_of(row)) for layout, row in zip(layouts, bits))
        assert equal.bytes_read(bits) == read <= equal.budget
        assert bits.shape == (4, 6)
        assert (bits > 2).any(), "what is left over is spent"


def test_an_average_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"Plans with 3 to 5 bits cannot have 2\.5 on average"):
        EqualBytes(make_layouts(2, 3), 2.5, fidelities=(3, 4, 5))


def test_chance_is_of_its_seed(tiny_sst2: TinyTask) -> None:
    one, same, other = (by_chance(tiny_sst2.store, seed) for seed in (0, 0, 1))
    assert (one.scores == same.scores).all()
    assert (one.order() != other.order()).any()


def profiled(store: ShardStore, folder: Path) -> ShardStore:
    """A copy of a store with a profile of either method, and one of another task."""
    copy = ShardStore.open(shutil.copytree(store.path, folder / "store"))
    random = np.random.default_rng(0)
    shape = (copy.grid.layers, copy.grid.slices)
    effects = random.normal(size=(*shape, len(LEVELS), 8))
    bits = np.full((1, *shape), 2)
    bits[0, 0, 0] = 6
    facts = {"task": "sst2", "split": "validation", "part": "first", "seed": 0, "sentences": 20}
    write_profile(copy, "sst2", EffectsImportance(effects, CheckedPlans(bits, np.array([0.1]))), facts)
    write_profile(copy, "paper", ExhaustiveImportance(random.random(shape), np.zeros(shape), 2, 0.0, 0.0), facts)
    write_profile(
        copy,
        "other",
        ExhaustiveImportance(random.random(shape), np.zeros(shape), 2, 0.0, 0.0),
        facts | {"task": "cola"},
    )
    return copy


def test_end_to_end(tiny_sst2: TinyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = profiled(tiny_sst2.store, tmp_path)
    arguments = ["--store", str(store.path), "--task", "sst2", "--dataset", str(tiny_sst2.data), "--seeds", "2"]
    arguments += [
        "--averages",
        "2.5",
        "3",
        "--json",
        str(tmp_path / "found.json"),
        "--markdown",
        str(tmp_path / "found.md"),
    ]
    bench_importance.main(arguments)
    printed = capsys.readouterr().out
    assert (tmp_path / "found.md").read_text() == printed
    content = json.loads((tmp_path / "found.json").read_text())
    rows = content["rows"]
    guides = {"effects (sst2)", "effects (sst2), plans not checked", "exhaustive (paper)", "default", "chance"}
    assert {row["guide"] for row in rows} == guides | {"uniform"}
    assert set(content["profiles"]) == {"sst2", "paper"}
    guided = [row for row in rows if row["guide"] != "uniform"]
    assert len(guided) == 2 * 2 * (4 + 2)
    assert all(row["bytes_read"] <= row["budget"] for row in rows)
    uniform = {row["average"]: row for row in rows if row["guide"] == "uniform"}
    assert set(uniform) == {2, 3, 4, 32}
    assert all(row["mean_bits"] == bits for bits, row in uniform.items())
    assert uniform[32]["accuracy"]["agreement"] == 100
    assert uniform[2]["budget"] < guided[0]["budget"] < uniform[3]["budget"]
    assert printed.count("| effects at 2.5 bits agrees") == 4
    assert "chance, 2 seeds" in printed
    assert str(tmp_path) not in printed


def test_only_the_profiles_that_are_named(
    tiny_sst2: TinyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = profiled(tiny_sst2.store, tmp_path)
    arguments = ["--store", str(store.path), "--task", "sst2", "--dataset", str(tiny_sst2.data), "--seeds", "0"]
    bench_importance.main([*arguments, "--averages", "2.5", "--allocators", "marginal", "--profiles"])
    assert [line.split(" | ")[2] for line in capsys.readouterr().out.splitlines() if "| marginal |" in line] == [
        "default"
    ]
    with pytest.raises(SystemExit) as exit:
        bench_importance.main([*arguments, "--profiles", "absent"])
    assert exit.value.code == 2
    assert "has no importance profile 'absent'" in capsys.readouterr().err

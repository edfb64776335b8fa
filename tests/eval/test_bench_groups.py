"""`eval/bench_groups.py` on a tiny model: matrices with fidelities of their own, within as many bytes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from eval import bench_groups
from eval.glue_runs.accuracy import PlanAccuracy
from eval.groups.mixed import MixedModel
from eval.groups.orders import LAYERS, MatrixBytes, orders, raised
from sti_hf.model import get_architecture
from sti_hf.profiling.tasks import get_task
from sti_hf.shards.layout import FULL
from sti_hf.shards.partition import inverse_order, join_layer
from sti_hf.shards.reading import read_quantized_layer
from tests.eval.conftest import TinyTask


@pytest.fixture(scope="module")
def mixed(tiny_sst2: TinyTask) -> MixedModel:
    """On the second half of the sentences."""
    return MixedModel(tiny_sst2.store, get_task("sst2"), str(tiny_sst2.data), part="second")


@pytest.mark.parametrize("bits", [2, 3, 6])
def test_one_fidelity_takes_what_the_store_says(tiny_sst2: TinyTask, bits: int) -> None:
    store = tiny_sst2.store
    sizes = MatrixBytes(store)
    pieces = sum(int(layout.piece_bytes[: bits + 1].sum()) for layout in store.layouts)
    assert sizes.of(sizes.uniform(bits)) == pieces


@pytest.mark.parametrize("average", [Fraction(7, 3), Fraction(5, 2), Fraction(7, 2)])
def test_plans_keep_to_the_bytes_and_leave_less_than_a_matrix(tiny_sst2: TinyTask, average: Fraction) -> None:
    sizes = MatrixBytes(tiny_sst2.store)
    budget, low = sizes.budget(average), int(average)
    for units in orders(sizes.grid).values():
        assert sorted((layer, name) for layer, names in units for name in names) == sorted(
            (layer, name) for layer in range(sizes.grid.layers) for name in sizes.grid.matrices
        )
        bits = raised(sizes, units, average)
        assert sizes.of(bits) <= budget
        assert set(np.unique(bits)) == {low, low + 1}
        for place in np.argwhere(bits == low):
            more = bits.copy()
            more[tuple(place)] += 1
            assert sizes.of(more) > budget


def test_whole_layers_come_from_the_first(tiny_sst2: TinyTask) -> None:
    sizes = MatrixBytes(tiny_sst2.store)
    bits = raised(sizes, orders(sizes.grid)[LAYERS], 2 + Fraction(1, sizes.grid.layers))
    assert (bits[0] == 3).all()
    assert (bits[1:] == 2).all()


def test_every_matrix_has_the_weights_of_its_fidelity(tiny_sst2: TinyTask, mixed: MixedModel) -> None:
    store = tiny_sst2.store
    shape = (store.grid.layers, len(store.grid.matrices))
    bits = np.random.default_rng(0).integers(2, 7, shape)
    mixed.worth(np.full(shape, 4))
    mixed.worth(bits)
    architecture = get_architecture(mixed._model.config)
    for layer, linears in enumerate(architecture.linears(mixed._model)):
        quantized, order = read_quantized_layer(store, layer), inverse_order(store.stack.slice_order[layer])
        for name, fidelity in zip(store.grid.matrices, bits[layer].tolist()):
            expected = join_layer(quantized.dequantize(fidelity), architecture.matrices, store.grid, order)[name]
            assert torch.equal(linears[name].weight, expected)


def test_one_fidelity_is_worth_what_the_whole_plan_is(tiny_sst2: TinyTask, mixed: MixedModel) -> None:
    grid = tiny_sst2.store.grid
    accuracy = PlanAccuracy(tiny_sst2.store, get_task("sst2"), str(tiny_sst2.data), part="second")
    for bits in (2, 3):
        worth = mixed.worth(np.full((grid.layers, len(grid.matrices)), bits))
        plan = np.full((grid.layers, grid.slices), bits)
        expected = accuracy.of(plan)
        assert (worth.metric, worth.agreement) == pytest.approx((expected.metric, expected.agreement))
        full = accuracy.logits(np.full_like(plan, FULL)).double().softmax(1)
        got = accuracy.logits(plan).double().softmax(1)
        torch.testing.assert_close(
            worth.divergences.double(), (full * (full / got).log()).sum(1), atol=1e-6, rtol=1e-4
        )
    assert mixed.worth(np.full((grid.layers, len(grid.matrices)), FULL)).divergences.abs().max() < 1e-6


def test_end_to_end(tiny_sst2: TinyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--store", str(tiny_sst2.store.path), "--task", "sst2", "--dataset", str(tiny_sst2.data)]
    written = tmp_path / "found.md"
    bench_groups.main([*arguments, "--averages", "5/2", "--measure", "8", "--markdown", str(written)])
    printed = capsys.readouterr().out
    assert written.read_text() == printed
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| 2.50")]
    names = [row[1].partition(":")[0] for row in rows]
    assert names == [*orders(tiny_sst2.store.grid), f"{LAYERS}, measured", "kinds, measured"]
    assert [row[-1].strip(" |") == "" for row in rows] == [name == LAYERS for name in names]
    assert str(tmp_path) not in printed
    with pytest.raises(SystemExit):
        bench_groups.main([*arguments, "--averages", "1"])
    assert "Averages are from 2 to below 6 bits, not 1." in capsys.readouterr().err

"""Weights as a quantizer would leave them, in training."""

from __future__ import annotations

import pytest
import torch

from eval.elastic.fake_quantization import fake_quantized
from sti_hf.model import Grid
from sti_hf.shards.layout import FULL
from sti_hf.shards.quantizers import get_quantizer

GRID = Grid(1, 2, 512, (("q", 64),))


def weights(seed: int = 0) -> torch.Tensor:
    """`[128, 512]`, two slices, rows of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(128, 512, generator=generator) * torch.rand(128, 1, generator=generator).add(0.1)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_errors_are_those_of_the_stores_quantizer(bits: int) -> None:
    weight = weights()
    quantized = get_quantizer("lloyd").quantize_layer(0, weight.view(2, 64, 512), GRID).dequantize(bits)
    expected = (quantized.view_as(weight) - weight).norm()
    found = fake_quantized(weight, [bits, bits], by_columns=False)
    assert (found - weight).norm() < (1.1 if bits < 5 else 1.4) * expected
    scale = weight.square().mean(1, keepdim=True).sqrt()
    assert len((found / scale).mul(1e4).round().unique()) <= 2**bits + 2


def test_each_slice_has_its_own_fidelity() -> None:
    weight = weights()
    mixed = fake_quantized(weight, [2, FULL], by_columns=False)
    assert torch.equal(mixed[:64], fake_quantized(weight, [2, 2], by_columns=False)[:64])
    assert torch.equal(mixed[64:], weight[64:])
    columns = fake_quantized(weight.t(), [2, FULL], by_columns=True)
    torch.testing.assert_close(columns.t(), mixed)


def test_fidelities_nest() -> None:
    weight = weights()
    coarse, fine = (fake_quantized(weight, [bits] * 2, by_columns=False) for bits in (2, 3))
    for row in (0, 70):
        halves = {(float(a), float(b)) for a, b in zip(coarse[row], fine[row])}
        assert len({a for a, _ in halves}) == 4
        assert len(halves) == 8, "each coarse value is two fine ones"


def test_outliers_stay() -> None:
    weight = weights()
    weight[3, 5] = 100 * weight[3].std()
    assert fake_quantized(weight, [2, 2], by_columns=False)[3, 5] == weight[3, 5]


def test_gradients_go_straight_through() -> None:
    weight = weights().requires_grad_()
    factor = torch.randn(weight.shape)
    (fake_quantized(weight, [2, 4], by_columns=False) * factor).sum().backward()
    assert torch.equal(weight.grad, factor)

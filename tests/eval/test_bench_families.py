"""`eval/bench_families.py`: a row of its table, of a tiny task."""

from __future__ import annotations

import re

import torch
from transformers import ViTConfig, ViTForImageClassification

from eval.bench_families import Batch, Task, calibration_batches, evaluated

COLUMNS = [
    *("model", "checkpoint", "full"),
    *(f"{bits} bits, {name}" for name in ("calibrated", "lloyd") for bits in (4, 3, 2)),
]


def tiny_task() -> Task:
    """Which half of an image is bright."""
    torch.manual_seed(0)
    labels = torch.arange(128) % 2
    images = torch.randn(128, 1, 8, 8) / 3
    images[labels == 0, :, :, :4] += 1
    images[labels == 1, :, :, 4:] += 1
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=2,
    )
    batches = [{"pixel_values": images[part], "labels": labels[part]} for part in torch.arange(128).split(32)]
    return Task("tiny", ViTForImageClassification(config), batches[:2], batches[2:], epochs=25)


def test_a_row() -> None:
    steps: list[str] = []
    row = evaluated(tiny_task(), steps.append)
    assert list(row) == COLUMNS
    assert steps == ["tiny: training", "tiny: calibrated", "tiny: lloyd"]
    figures = {column: [float(number) for number in re.findall(r"[\d.]+", row[column])] for column in COLUMNS[1:]}
    assert figures["checkpoint"][0] > 90, "it has learned"
    assert figures["full"] == [*figures["checkpoint"], 100]
    assert figures["4 bits, calibrated"][1] > 95
    for column in COLUMNS[3:]:
        accuracy, agreement = figures[column]
        assert abs(accuracy - figures["checkpoint"][0]) <= 100 - agreement + 0.1


def test_calibration_has_no_labels_and_no_more_inputs_than_it_says() -> None:
    batches: list[Batch] = [
        {"input_ids": torch.full((100, size), size), "labels": torch.zeros(100)} for size in range(1, 21)
    ]
    chosen = calibration_batches(batches)
    assert sum(len(batch["input_ids"]) for batch in chosen) <= 512
    assert all(list(batch) == ["input_ids"] for batch in chosen)
    assert len({batch["input_ids"].shape[1] for batch in chosen}) > 5, "all lengths"

"""Towers that see images or read texts, in the ways that people use them, against the stock ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextModel,
    SiglipVisionModel,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

from sti_hf import shard_checkpoint
from sti_hf.errors import InputError, SourceError
from tests.integrations.checkpoints import STOCK, save_checkpoint
from tests.models import tiny_config, tiny_inputs, tiny_model
from tests.runtime.sessions import store_of

WHOLE = [
    (
        CLIPModel,
        CLIPConfig,
        "clip",
        (CLIPVisionModel, CLIPVisionModelWithProjection, CLIPTextModel, CLIPTextModelWithProjection),
    ),
    (SiglipModel, SiglipConfig, "siglip", (SiglipVisionModel, SiglipTextModel)),
]


def images(count: int, size: int = 20) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(count)]


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("whole", WHOLE, ids=lambda whole: whole[2])
def test_a_tower_of_a_checkpoint_of_two(whole: Any, tmp_path: Path) -> None:
    model_class, config_class, name, towers = whole
    texts, pictures = tiny_config(f"{name}_text_model").to_dict(), tiny_config(f"{name}_vision_model").to_dict()
    model_class(config_class(text_config=texts, vision_config=pictures)).save_pretrained(tmp_path / "both")
    for tower in towers:
        stock = tower.from_pretrained(tmp_path / "both").eval()
        model = tower.from_pretrained(tmp_path / "both", sti_config=STOCK)
        inputs = tiny_inputs(stock, padded=False)
        with torch.no_grad():
            assert torch.allclose(model(**inputs)[0], stock(**inputs)[0], atol=1e-5)
        model.sti.close()
    of_others = next(towers[-1] for _, _, other, towers in WHOLE if other != name)
    with pytest.raises(SourceError, match="name a class of its own family"):
        of_others.from_pretrained(tmp_path / "both", sti_config=STOCK)


def test_images_are_classified_in_batches(tmp_path: Path) -> None:
    source = str(saved(tiny_model(ViTForImageClassification, num_labels=5), tmp_path / "model"))
    build: Any = pipeline
    elastic, stock = (build("image-classification", model=source, **each) for each in ({"sti_config": STOCK}, {}))
    for got, expected in zip(elastic(images(5), batch_size=2), stock(images(5)), strict=True):
        assert [each["label"] for each in got] == [each["label"] for each in expected]
        assert np.allclose([each["score"] for each in got], [each["score"] for each in expected], atol=1e-5)
    assert elastic.model.sti.plan.workload.tokens == 5  # four patches and a class, exactly
    elastic.model.sti.close()


def test_features_of_images(tmp_path: Path) -> None:
    source = str(saved(tiny_model(ViTModel), tmp_path / "model"))
    build: Any = pipeline
    elastic, stock = (build("image-feature-extraction", model=source, **each) for each in ({"sti_config": STOCK}, {}))
    assert np.allclose(elastic(images(3), batch_size=3), stock(images(3)), atol=1e-5)
    elastic.model.sti.close()


def test_an_image_of_another_size_is_planned_for_exactly(tmp_path: Path) -> None:
    source = saved(tiny_model(ViTModel), tmp_path / "model")
    stock, model = ViTModel.from_pretrained(source), ViTModel.from_pretrained(source, sti_config=STOCK)
    pixels = torch.randn(2, 3, 32, 24)
    with torch.no_grad():
        expected = stock(pixels, interpolate_pos_encoding=True)[0]
    assert torch.allclose(model(pixels, interpolate_pos_encoding=True)[0], expected, atol=1e-5)
    assert model.sti.plan.workload.tokens == 13
    with pytest.raises(InputError, match="pixel_values is empty"):
        model(pixels[:0])
    with pytest.raises(InputError, match="needs pixel_values"):
        model()
    model.sti.close()


@pytest.mark.parametrize("whole", WHOLE, ids=lambda whole: whole[2])
def test_a_tower_of_a_store_of_two(whole: Any, tmp_path: Path) -> None:
    model_class, _, _, towers = whole
    both = tiny_model(model_class)
    both.save_pretrained(tmp_path / "both")
    store = store_of(both, tmp_path / "store")
    for tower in towers:
        stock = tower.from_pretrained(tmp_path / "both").eval()
        model = tower.from_pretrained(store.path, sti_config=STOCK)
        inputs = tiny_inputs(stock, padded=False)
        with torch.no_grad():
            assert torch.allclose(model(**inputs)[0], stock(**inputs)[0], atol=1e-5)
        copied = copy.deepcopy(model)
        assert torch.equal(copied(**inputs)[0], model(**inputs)[0])
        copied.sti.close()
        model.sti.close()


@pytest.mark.parametrize("model_class", [CLIPModel, SiglipModel])
def test_images_are_classified_by_words(model_class: Any, tmp_path: Path) -> None:
    source = save_checkpoint(tiny_model(model_class), tmp_path / "model")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(source)
    store = shard_checkpoint(source, tmp_path / "store", quantizer="gobo")
    build: Any = pipeline
    task, labels = "zero-shot-image-classification", ["cold", "a model", "answers"]
    stock = build(task, model=str(source))
    for place in (source, store.path):
        elastic = build(task, model=str(place), sti_config=STOCK)
        options: Any = {"candidate_labels": labels, "tokenizer_kwargs": {"max_length": 8}}
        for got, expected in zip(elastic(images(3), **options), stock(images(3), **options), strict=True):
            scores = {each["label"]: each["score"] for each in expected}
            assert {each["label"]: pytest.approx(each["score"], abs=1e-5) for each in got} == scores
        assert list(elastic.model.sti.stacks) == ["text_model", "vision_model"]
        elastic.model.sti.close()

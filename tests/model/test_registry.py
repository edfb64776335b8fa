"""Every family's names and shapes against Transformers, and the errors of what is not supported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import AlbertConfig, BloomConfig, CLIPConfig, DebertaConfig

import sti_hf.model
from sti_hf.model import UnsupportedModelError, get_architecture, supported_model_types
from sti_hf.model.architecture import POSITION_EMBEDDINGS, WORD_EMBEDDINGS
from sti_hf.model.fused import split_fused
from tests.models import (
    FAMILIES,
    FFN,
    GATED,
    HEADS,
    HIDDEN,
    IMAGE_FAMILIES,
    KEY_VALUE_HEADS,
    LAYERS,
    POSITIONS,
    SOUND_FAMILIES,
    TASK_HEADS,
    UNDROPPABLE,
    tiny_config,
    tiny_model,
)

HEAD_CLASSES = [
    pytest.param(model_class, id=model_class.__name__)
    for model_classes in TASK_HEADS.values()
    for model_class in model_classes
]


def test_the_promised_families_are_supported() -> None:
    promised = {"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "electra", "modernbert"}
    promised |= {"nomic_bert", "gte", "eurobert", "jina_embeddings_v3", "ernie", "layoutlm", "deberta-v2"}
    promised |= {"vit", "deit", "dinov2", "dinov3_vit", "siglip_vision_model", "siglip_text_model"}
    promised |= {"clip_vision_model", "clip_text_model"}
    assert promised <= set(supported_model_types())
    assert supported_model_types() == sorted(supported_model_types())


@pytest.mark.parametrize("model_class", HEAD_CLASSES)
def test_names_are_those_of_the_stock_model(model_class: Any) -> None:
    model = tiny_model(model_class)
    architecture = get_architecture(model.config)
    base = model.base_model
    paths = architecture.embeddings(model.config)
    if WORD_EMBEDDINGS in paths:
        assert base.get_submodule(paths[WORD_EMBEDDINGS]) is model.get_input_embeddings()
    else:
        assert model.config.model_type in (*IMAGE_FAMILIES, *SOUND_FAMILIES)
    if POSITION_EMBEDDINGS in paths:
        positions = base.get_submodule(paths[POSITION_EMBEDDINGS])
        assert isinstance(positions, nn.Embedding) and positions.num_embeddings == POSITIONS
    assert all(isinstance(base.get_submodule(path), nn.Embedding) for path in paths.values())

    layers = base.get_submodule(architecture.layers)
    assert isinstance(layers, nn.ModuleList) and len(layers) == LAYERS
    split_fused(model, architecture)
    for layer in layers:
        named = {matrix.module for matrix in architecture.matrices}
        assert named == {path for path, module in layer.named_modules() if isinstance(module, nn.Linear)}

    decoders = [module for path, module in model.named_modules() if path in architecture.lm_decoders]
    assert decoders == ([] if model.get_output_embeddings() is None else [model.get_output_embeddings()])
    for decoder in decoders:
        assert not model.config.tie_word_embeddings or decoder.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("model_type", FAMILIES)
def test_grid(model_type: str) -> None:
    config = tiny_config(model_type)
    grid = get_architecture(config).grid(config)
    keys = KEY_VALUE_HEADS.get(model_type, HEADS)
    slices = 8 if model_type in UNDROPPABLE else keys
    head, queries, ffn = HIDDEN // HEADS * keys // slices, HIDDEN // slices, FFN // slices
    assert (grid.layers, grid.slices, grid.row_length) == (LAYERS, slices, HIDDEN)
    assert list(grid.widths) == ([slices] if model_type in UNDROPPABLE else list(range(1, slices + 1)))
    gate = [("gate", ffn)] if model_type in GATED else []
    attention = [("q", queries), ("k", head), ("v", head), ("o", queries)]
    assert set(grid.rows) == {*attention, ("up", ffn), *gate, ("down", ffn)}
    assert grid.matrices == tuple(matrix.name for matrix in get_architecture(config).matrices)


@pytest.mark.parametrize(
    ("sizes", "slices", "rows"),
    [
        (
            {"num_attention_heads": 4, "head_dim": 256, "hidden_size": 640, "intermediate_size": 2048},
            8,
            (128, 32, 256),
        ),
        ({"num_attention_heads": 3, "head_dim": 256, "hidden_size": 768, "intermediate_size": 1152}, 8, (96, 32, 144)),
        ({"num_attention_heads": 3, "head_dim": 12, "hidden_size": 24, "intermediate_size": 42}, 6, (6, 2, 7)),
        ({"num_attention_heads": 1, "head_dim": 14, "hidden_size": 8, "intermediate_size": 9}, 1, (14, 14, 9)),
    ],
    ids=["Gemma 3 270M", "EmbeddingGemma", "sixths", "nothing in common"],
)
def test_a_single_key_and_value_head_is_cut_finely(
    sizes: dict[str, int], slices: int, rows: tuple[int, int, int]
) -> None:
    config = tiny_config("gemma3_text", **sizes, num_key_value_heads=1)
    grid = get_architecture(config).grid(config)
    assert (grid.slices, list(grid.widths), grid.droppable) == (slices, [slices], False)
    assert tuple(grid.matrix_rows[name] for name in ("q", "k", "up")) == rows


def test_an_unsupported_family_gets_a_list_of_those_supported() -> None:
    with pytest.raises(UnsupportedModelError, match="'bloom'") as error:
        get_architecture(BloomConfig())
    assert all(model_type in str(error.value) for model_type in supported_model_types())


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (AlbertConfig(), "one layer many times"),
        (CLIPConfig(), "the stacks text_model and vision_model"),
        (DebertaConfig(), "versions 2 and 3"),
    ],
)
def test_some_kinds_are_told_why(config: Any, why: str) -> None:
    with pytest.raises(UnsupportedModelError, match=why):
        get_architecture(config)


@pytest.mark.parametrize(
    ("model_type", "overrides", "why"),
    [
        ("deberta-v2", {"share_att_key": False}, "share_att_key"),
        ("deberta-v2", {"conv_kernel_size": 3}, "convolution"),
        ("dinov2", {"use_swiglu_ffn": True}, "SwiGLU"),
        ("dinov3_vit", {"use_gated_mlp": True}, "gated"),
    ],
)
def test_configurations_with_another_cut_are_rejected(model_type: str, overrides: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedModelError, match=why):
        get_architecture(tiny_config(model_type, **overrides))


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra"])
def test_cross_attention_is_rejected(model_type: str) -> None:
    get_architecture(tiny_config(model_type, is_decoder=True))
    with pytest.raises(UnsupportedModelError, match="cross-attention"):
        get_architecture(tiny_config(model_type, is_decoder=True, add_cross_attention=True))


@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        ("bert", {"num_attention_heads": 5}, "hidden_size 32 cannot be cut into 5"),
        ("bert", {"intermediate_size": 66}, "intermediate_size 66 cannot be cut into 4"),
        ("bert", {"hidden_size": 20}, "multiple of 8"),
        ("electra", {"num_attention_heads": 3}, "hidden_size 32 cannot be cut into 3"),
        ("distilbert", {"hidden_dim": 66}, "hidden_dim 66 cannot be cut into 4"),
    ],
)
def test_indivisible_sizes_are_rejected(model_type: str, overrides: dict[str, int], message: str) -> None:
    config = tiny_config(model_type, **overrides)
    with pytest.raises(ValueError, match=message):
        get_architecture(config).grid(config)


def test_importing_architectures_imports_no_torch() -> None:
    """Planning imports this folder and stays free of torch; the package's own `__init__` is left out."""
    root = Path(sti_hf.model.__file__).parents[1]
    code = f"""
import sys, types
sys.modules["sti_hf"] = package = types.ModuleType("sti_hf")
package.__path__ = [{str(root)!r}]
import sti_hf.model
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)

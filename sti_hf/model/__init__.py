"""The model families that sti_hf can shard: where their layers keep heads, FFN and embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sti_hf.model.architecture import Architecture, Matrix, UnsupportedModelError
from sti_hf.model.families.ast import AudioSpectrogramTransformer
from sti_hf.model.families.bert import Bert
from sti_hf.model.families.deberta_v2 import DebertaV2
from sti_hf.model.families.distilbert import DistilBert
from sti_hf.model.families.electra import Electra
from sti_hf.model.families.ernie import Ernie
from sti_hf.model.families.gpt2 import GPT2
from sti_hf.model.families.gpt_neox import GPTNeoX
from sti_hf.model.families.layoutlm import LayoutLM
from sti_hf.model.families.llama import Llama, Olmo2, Phi3
from sti_hf.model.families.modernbert import ModernBert
from sti_hf.model.families.mpnet import MPNet
from sti_hf.model.families.opt import OPT
from sti_hf.model.families.roberta import Roberta
from sti_hf.model.families.rotary import EuroBert, JinaEmbeddingsV3, RotaryEncoder
from sti_hf.model.families.towers import ClipVision, Dinov2, Dinov3, SiglipVision, TextTower, ViT
from sti_hf.model.grid import Grid
from sti_hf.model.stacks import STACKED

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = [
    "Architecture",
    "Grid",
    "Matrix",
    "UnsupportedModelError",
    "architecture_of",
    "get_architecture",
    "supported_model_types",
]

FAMILIES: tuple[Architecture, ...] = (
    AudioSpectrogramTransformer(),
    Bert(),
    ClipVision(),
    DebertaV2(),
    Dinov2(),
    Dinov3(),
    DistilBert(),
    Electra(),
    Ernie(),
    EuroBert(),
    GPT2(),
    GPTNeoX(),
    JinaEmbeddingsV3(),
    LayoutLM(),
    Llama(),
    ModernBert(),
    MPNet(),
    Olmo2(),
    OPT(),
    Phi3(),
    Roberta(),
    RotaryEncoder(),
    SiglipVision(),
    TextTower(),
    ViT(),
)
"""To support another family, write its file and add it here."""

WHY_NOT = {
    "albert": "ALBERT runs one layer many times, so that there is nothing to read meanwhile",
    "deberta": "DeBERTa's first version fuses its projections head by head; versions 2 and 3 are supported",
    "new": "that is code of the checkpoint's own: use a checkpoint of Transformers' GTE",
}
"""What to say of some types beside which are supported."""

_BY_MODEL_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}


def supported_model_types() -> list[str]:
    """`config.model_type` of every supported model, sorted."""
    return sorted([*_BY_MODEL_TYPE, *STACKED])


def get_architecture(config: PreTrainedConfig) -> Architecture:
    """Architecture of the family that `config.model_type` names, after its `check` of the configuration.

    Raises:
        UnsupportedModelError: the family is not supported (the message lists those that are), or the
            configuration asks of the family what is not supported.
    """
    architecture = architecture_of(getattr(config, "model_type", None))
    architecture.check(config)
    return architecture


def architecture_of(model_type: str | None) -> Architecture:
    """Architecture of the family with this `config.model_type`. Raises `UnsupportedModelError` where there is none."""
    if model_type is not None and model_type in STACKED:
        raise UnsupportedModelError(
            f"Models of type {model_type!r} have the stacks {' and '.join(STACKED[model_type])}, and this is for "
            "models with one: give it one of these."
        )
    if model_type not in _BY_MODEL_TYPE:
        why = f" ({WHY_NOT[model_type]})" if model_type in WHY_NOT else ""
        raise UnsupportedModelError(
            f"Models of type {model_type!r} are not supported{why}; supported are "
            f"{', '.join(supported_model_types())}."
        )
    return _BY_MODEL_TYPE[model_type]

"""What sti_hf needs to know of a model family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sti_hf.architectures.grid import Grid
from sti_hf.errors import UnsupportedModelError

if TYPE_CHECKING:  # planning imports this package for Grid and must not import torch with it
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


HEAD_MATRICES = ("q", "k", "v", "o")
"""Names of the matrices whose rows or columns belong to attention heads; those of the others are FFN neurons'."""

WORD_EMBEDDINGS, POSITION_EMBEDDINGS = "word_embeddings", "position_embeddings"
"""Names of the embeddings that are read by row."""

CUT_BY_COLUMNS = ("o", "down")
"""Names of the matrices that read heads or FFN neurons: a slice is columns of them, and is stored transposed. Of the
others, which write heads or neurons, it is rows."""


@dataclass(frozen=True)
class Matrix:
    """One of the weight matrices that a layer is cut along: its rows or columns are shared out among the slices."""

    name: str
    """"q", "k", "v", "o", "up", "gate" or "down"."""

    module: str
    """Path of its `nn.Linear` inside a layer, such as "attention.self.query"."""

    @property
    def by_columns(self) -> bool:
        """A slice is columns of the weight."""
        return self.name in CUT_BY_COLUMNS


def base_prefix(model: PreTrainedModel) -> str:
    """What the names of the base model's parameters begin with in the whole model."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


class Architecture:
    """A model family: names and shapes, and the few things its code needs to run some of its heads.

    A family is one subclass with the class attributes set. Its models are Transformers' own and stay unchanged.
    """

    model_types: ClassVar[tuple[str, ...]]
    """Values of `config.model_type` of this family."""

    layers: ClassVar[str]
    """Path of the `nn.ModuleList` of layers inside `model.base_model`."""

    word_embeddings: ClassVar[str] = "embeddings.word_embeddings"
    """Path of the word embeddings inside `model.base_model`."""

    position_embeddings: ClassVar[str] = "embeddings.position_embeddings"
    """Path of the position embeddings inside `model.base_model`."""

    matrices: ClassVar[tuple[Matrix, ...]]
    """Matrices of a layer in stored order: q, k, v, o, up, [gate,] down."""

    lm_decoders: ClassVar[tuple[str, ...]] = ()
    """Paths, inside the whole model, of the `nn.Linear`s over the vocabulary, whose weight may be tied to the word
    embeddings. A model has at most one; models with another head have none."""

    head_tables: ClassVar[tuple[str, ...]] = ()
    """Paths, inside `model.base_model`, of embeddings with a column for every head, which all layers share: where
    there are some, an order of heads other than the checkpoint's is one order for all layers."""

    ffn_size: ClassVar[str] = "intermediate_size"
    """Name of the configuration's field for the number of FFN neurons of a layer."""

    skips_padding: ClassVar[bool] = False
    """Positions are counted over tokens that are not padding, from behind the padding token's id."""

    def longest_input(self, config: PreTrainedConfig) -> int:
        """Tokens of the longest input that the position embeddings admit."""
        behind = config.pad_token_id + 1 if self.skips_padding and config.pad_token_id is not None else 0
        return int(config.max_position_embeddings) - behind

    def check(self, config: PreTrainedConfig) -> None:
        """Raise `UnsupportedModelError` where `config` asks for what the runtime cannot do."""
        if getattr(config, "add_cross_attention", False):
            raise UnsupportedModelError(
                f"This {config.model_type} model has cross-attention (config.add_cross_attention), "
                "which is not supported; use one without it."
            )

    def grid(self, config: PreTrainedConfig) -> Grid:
        """Cut of a model of this family: a slice is one attention head with its share of the FFN neurons.

        Raises:
            ValueError: the heads do not divide the hidden size or the FFN size, or the hidden size is not a multiple
                of 8 (a bit-plane stores 8 weights of a row in a byte).
        """
        heads, hidden, ffn = config.num_attention_heads, config.hidden_size, getattr(config, self.ffn_size)
        for name, size in (("hidden_size", hidden), (self.ffn_size, ffn)):
            if size % heads:
                raise UnsupportedModelError(
                    f"{name} {size} cannot be cut into {heads} equal slices: it must be a multiple of "
                    "the number of attention heads."
                )
        if hidden % 8:
            raise UnsupportedModelError(f"hidden_size {hidden} is not supported: it must be a multiple of 8.")
        sizes = (hidden if matrix.name in HEAD_MATRICES else ffn for matrix in self.matrices)
        rows = tuple((matrix.name, size // heads) for matrix, size in zip(self.matrices, sizes, strict=True))
        return Grid(layers=config.num_hidden_layers, slices=heads, row_length=hidden, rows=rows)

    def embeddings(self, config: PreTrainedConfig) -> dict[str, str]:
        """Paths, inside `model.base_model`, of the embeddings that are read by row, by their names."""
        return {WORD_EMBEDDINGS: self.word_embeddings, POSITION_EMBEDDINGS: self.position_embeddings}

    def linears(self, model: PreTrainedModel) -> list[dict[str, nn.Linear]]:
        """The linear modules of every layer of a model of this family, by the name of their matrix."""
        layers: Any = model.base_model.get_submodule(self.layers)
        return [{matrix.name: layer.get_submodule(matrix.module) for matrix in self.matrices} for layer in layers]

    def prepare_layer(self, layer: nn.Module, slices: int) -> None:
        """Let the stock forward of `layer` work with that many slices; with all of them it is as it was made."""

    def layer_inputs(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], heads: Sequence[int]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs of a layer's forward for its active heads.

        `heads[k]` is the checkpoint's index of the head in slice k. Neither `args` nor `kwargs` is changed in place.
        """
        return args, kwargs

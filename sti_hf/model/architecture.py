"""What sti_hf needs to know of a model family."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sti_hf.errors import UnsupportedModelError
from sti_hf.model.grid import Grid

if TYPE_CHECKING:  # planning imports this package for Grid and must not import torch with it
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel


HEAD_MATRICES = ("q", "k", "v", "o")
"""Names of the matrices whose rows or columns belong to attention heads; those of the others are FFN neurons'."""

WORD_EMBEDDINGS, POSITION_EMBEDDINGS = "word_embeddings", "position_embeddings"
"""Names of the embeddings that are read by row."""

CUT_BY_COLUMNS = ("o", "down")
"""Names of the matrices that read heads or FFN neurons: a slice is columns of them, and is stored transposed. Of the
others, which write heads or neurons, it is rows."""


FINEST = 8
"""Slices, at most, of a layer that cannot do without some of its heads: finer ones would be read in small pieces."""


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


@dataclass(frozen=True)
class Fused:
    """A linear of a layer that computes several matrices at once, or one that is transposed (`Conv1D`). Theirs are the
    modules `module.name`."""

    module: str
    """Its path inside a layer, such as "attn.Wqkv"."""

    names: tuple[str, ...]
    """Of the matrices, in the order of its rows."""

    by_head: bool = False
    """The rows are those of the first head, of all its matrices, then those of the second .."""

    def matrices(self) -> tuple[Matrix, ...]:
        """Its matrices."""
        return tuple(Matrix(name, f"{self.module}.{name}") for name in self.names)


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

    tables: ClassVar[Mapping[str, str]] = {
        WORD_EMBEDDINGS: "embeddings.word_embeddings",
        POSITION_EMBEDDINGS: "embeddings.position_embeddings",
    }
    """Paths, inside `model.base_model`, of the embeddings that are read by row, by their names in a store."""

    matrices: ClassVar[tuple[Matrix, ...]]
    """Matrices of a layer in stored order: q, k, v, o, up, [gate,] down."""

    fused: ClassVar[tuple[Fused, ...]] = ()
    """The linears of a layer that several of the matrices are parts of."""

    lm_decoders: ClassVar[tuple[str, ...]] = ()
    """Paths, inside the whole model, of the `nn.Linear`s over the vocabulary, whose weight may be tied to the word
    embeddings. A model has at most one; models with another head have none."""

    head_tables: ClassVar[tuple[str, ...]] = ()
    """Paths, inside `model.base_model`, of embeddings with a column for every head, which all layers share: where
    there are some, an order of heads other than the checkpoint's is one order for all layers."""

    ffn_size: ClassVar[str] = "intermediate_size"
    """Name of the configuration's field for the number of FFN neurons of a layer."""

    droppable_heads: ClassVar[bool] = True
    """Whether a layer can do without some of its heads. Not where a norm goes over all of them."""

    skips_padding: ClassVar[bool] = False
    """Positions are counted over tokens that are not padding, from behind the padding token's id."""

    def bounds_positions(self, config: PreTrainedConfig) -> bool:
        """Whether a longer input than `longest_input` has no positions: rotary and relative ones go on for ever."""
        return True

    def longest_input(self, config: PreTrainedConfig) -> int:
        """Tokens of the longest input that the model has positions for, or was made for."""
        behind = config.pad_token_id + 1 if self.skips_padding and config.pad_token_id is not None else 0
        return int(config.max_position_embeddings) - behind

    main_inputs: ClassVar[tuple[str, ...]] = ("input_ids", "inputs_embeds")
    """One of these must be given."""

    exact_tokens: ClassVar[bool] = False
    """Inputs of other lengths than the plan's are rare: a plan is for just so many tokens."""

    def shape_of(self, config: PreTrainedConfig, inputs: Mapping[str, Any]) -> tuple[int, int] | None:
        """Batch, and tokens of each sequence, of a base model's inputs; None where these do not say it."""
        for name, width in (("input_ids", 1), ("inputs_embeds", 2)):
            shape = getattr(inputs.get(name), "shape", ())
            if len(shape) >= width:
                return math.prod(shape[:-width]), int(shape[-width])
        return None

    def example_inputs(self, config: PreTrainedConfig, batch: int, tokens: int) -> dict[str, Tensor]:
        """Inputs of a base model to measure with."""
        import torch

        ids = torch.randint(min(10, config.vocab_size - 1), config.vocab_size, (batch, tokens))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def check(self, config: PreTrainedConfig) -> None:
        """Raise `UnsupportedModelError` where `config` asks for what the runtime cannot do."""
        if getattr(config, "add_cross_attention", False):
            raise UnsupportedModelError(
                f"This {config.model_type} model has cross-attention (config.add_cross_attention), "
                "which is not supported; use one without it."
            )

    def grid(self, config: PreTrainedConfig) -> Grid:
        """Cut of a model of this family: a slice is one attention head with its share of the FFN neurons.

        Where several query heads share a key and value head, a slice is that one with all its query heads. Where no
        head can be left out (`droppable_heads`, or there is one key and value head alone), slices are equal parts of
        every matrix, up to `FINEST`, and not droppable.
        Raises `UnsupportedModelError` where the slices would not be equal, or the hidden size is not a multiple of 8:
        a bit-plane stores 8 weights of a row in a byte.
        """
        hidden, heads = config.hidden_size, config.num_attention_heads
        keys = getattr(config, "num_key_value_heads", None) or heads
        head_size = self.head_size(config)
        _check_cut("num_attention_heads", heads, keys)
        ffn = self.ffn_neurons(config)
        if hidden % 8:
            raise UnsupportedModelError(f"hidden_size {hidden} is not supported: it must be a multiple of 8.")
        sizes = {"q": heads * head_size, "k": keys * head_size, "v": keys * head_size, "o": heads * head_size}
        totals = {matrix.name: sizes.get(matrix.name, ffn) for matrix in self.matrices}
        droppable = self.droppable_heads and keys > 1
        if droppable:
            _check_cut(self.ffn_size, ffn, keys)
        slices = keys if droppable else _finest_cut(totals.values())
        rows = tuple((name, total // slices) for name, total in totals.items())
        return Grid(config.num_hidden_layers, slices, hidden, rows, droppable)

    def head_size(self, config: PreTrainedConfig) -> int:
        """Rows of a query head."""
        own = getattr(config, "head_dim", None)
        if own is None:
            _check_cut("hidden_size", config.hidden_size, config.num_attention_heads)
        return int(own or config.hidden_size // config.num_attention_heads)

    def ffn_neurons(self, config: PreTrainedConfig) -> int:
        """FFN neurons of a layer."""
        return int(getattr(config, self.ffn_size))

    def fused_sizes(self, config: PreTrainedConfig, fused: Fused) -> dict[str, int]:
        """Rows of each matrix of a fused linear."""
        grid = self.grid(config)
        rows = {name: grid.slices * grid.matrix_rows[name] for name in fused.names}
        return {name: grid.row_length if name in CUT_BY_COLUMNS else count for name, count in rows.items()}

    def embeddings(self, config: PreTrainedConfig) -> dict[str, str]:
        """The `tables` that a model of this configuration has."""
        return dict(self.tables)

    def linears(self, model: PreTrainedModel) -> list[dict[str, nn.Linear]]:
        """The linear modules of every layer of a model of this family, by the name of their matrix."""
        layers: Any = model.base_model.get_submodule(self.layers)
        return [{matrix.name: layer.get_submodule(matrix.module) for matrix in self.matrices} for layer in layers]

    def prepare_layer(self, layer: nn.Module, slices: int) -> None:
        """Let the stock forward of `layer` work with that many slices; with all of them it is as it was made.

        Only called where slices are droppable, and so heads; as is `layer_inputs`.
        """

    def layer_inputs(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], heads: Sequence[int]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs of a layer's forward for its active heads.

        `heads[k]` is the checkpoint's index of the head in slice k. Neither `args` nor `kwargs` is changed in place.
        """
        return args, kwargs


def _finest_cut(sizes: Iterable[int]) -> int:
    """The largest number of equal parts, up to `FINEST`, that all of these numbers of rows fall into."""
    common = math.gcd(*sizes)
    return max(parts for parts in range(1, FINEST + 1) if common % parts == 0)


def _check_cut(name: str, size: int, slices: int) -> None:
    if size % slices:
        raise UnsupportedModelError(
            f"{name} {size} cannot be cut into {slices} equal slices: it must be a multiple of the number of "
            "attention heads that have keys of their own."
        )

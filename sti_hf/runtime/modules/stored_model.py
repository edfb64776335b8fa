"""What a whole model does otherwise than a stock one, because its weights are in a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from torch import nn

from sti_hf.errors import UnsupportedUseError
from sti_hf.runtime.modules.row_gathered_embedding import RowGatheredEmbedding
from sti_hf.runtime.modules.streamed_decoder import StreamedDecoder

if TYPE_CHECKING:
    from sti_hf.runtime.session import STISession


class StoredModel:
    """Methods of a Transformers model that runs from its store. Its attribute `sti` is its session."""

    @property
    def _session(self) -> STISession:
        return self.__dict__["sti"]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A model is pickled as its store and its configurations, and reopens there."""
        return self._session.reopening(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        reopen, arguments = self._session.reopening(self)
        return reopen(*arguments)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Parameters of the model, wherever they are: as many as the stock model has. None is trainable."""
        if only_trainable:
            return 0
        modules = list(self.modules())  # type: ignore[attr-defined]
        resident = {id(each): each.numel() for each in self.parameters()}  # type: ignore[attr-defined]
        embedded = {each.table: each.num_embeddings * each.embedding_dim for each in modules if _is_gathered(each)}
        tables = {each.table: each.out_features * each.in_features for each in modules if _is_streamed(each)}
        if exclude_embeddings:
            unwanted = [each.weight for each in modules if isinstance(each, nn.Embedding)]
            for weight in unwanted:
                resident.pop(id(weight), None)
            tables = {name: count for name, count in tables.items() if name not in embedded}
        else:
            tables |= embedded
        return sum(resident.values()) + sum(tables.values()) + self._session.store.grid.weights

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of weights in memory now: what is resident, and the preload, staging and working buffers."""
        memory = self._session.memory()
        return sum(memory[name] for name in ("resident", "preload", "staging", "working"))

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """The embeddings, where this asks for their present size."""
        embeddings = self.get_input_embeddings()  # type: ignore[attr-defined]
        if new_num_tokens not in (None, embeddings.num_embeddings):
            raise UnsupportedUseError(
                f"This model's {embeddings.num_embeddings} embeddings are in its store and cannot become "
                f"{new_num_tokens}: resize those of the checkpoint, and shard it again."
            )
        return embeddings

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is to be done: a store has tied weights once."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises `UnsupportedUseError`: the weights are in the store already."""
        raise UnsupportedUseError(
            f"This model's weights are in its store: to save the model, copy {self._session.store.path}."
        )

    def push_to_hub(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises `UnsupportedUseError`: the weights are in the store already."""
        raise UnsupportedUseError(
            f"This model's weights are in its store: to share the model, upload the folder {self._session.store.path}."
        )


def _is_gathered(module: nn.Module) -> bool:
    return isinstance(module, RowGatheredEmbedding)


def _is_streamed(module: nn.Module) -> bool:
    return isinstance(module, StreamedDecoder)

"""STISession: what `model.sti` is, and what a user calls."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from sti_hf.config import STIConfig
from sti_hf.errors import UnsupportedUseError
from sti_hf.planning import ExecutionPlan, Planner
from sti_hf.runtime.attach import attach
from sti_hf.runtime.engines import Engines
from sti_hf.runtime.forwards import Forwards
from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.generation import Generation
from sti_hf.runtime.modules.part import StoredPart
from sti_hf.runtime.prepared import check_plan
from sti_hf.runtime.timeline import RunTimeline
from sti_hf.shards.store import ShardStore

Reopening = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function that opens a model again, and its arguments: all of them can be pickled."""


class STISession(StoredPart):
    """Runs a model from its store. Reading begins at once; one forward runs at a time, other threads wait their turn.

    It closes at the end of a `with` block, or when neither the model nor a part of it is used any more.

    The arguments are those of `Engines`.
    """

    def __init__(
        self,
        store: ShardStore,
        config: STIConfig,
        planner: Planner,
        path: ComputePath,
        rate_limit: float = 0.0,
        vocabulary: Planner | None = None,
    ) -> None:
        self.store, self.config = store, config
        self.reopen: Callable[[Any], Reopening] | None = None
        self._model: weakref.ref[PreTrainedModel] | None = None
        self._engines = Engines(store, config, planner, path, rate_limit, vocabulary)

    @property
    def plan(self) -> ExecutionPlan:
        """The plan of the layers that ran last, or will run next."""
        return self._engines.layers.streamer.prepared.plan

    @property
    def vocabulary_plan(self) -> ExecutionPlan | None:
        """The plan of the strips of the vocabulary, which run behind the layers; None where the model has none."""
        vocabulary = self._engines.vocabulary
        return None if vocabulary is None else vocabulary.streamer.prepared.plan

    @property
    def last_run(self) -> RunTimeline | None:
        """What the last inference took."""
        return self._engines.layers.last_run

    @property
    def last_generation(self) -> Generation | None:
        """What the last text took that was written: its prompt, and each further token; None before the first."""
        return self._engines.layers.generations.last

    def replan(
        self,
        target_latency: float | str | None = None,
        preload_budget: int | str | None = None,
        target_token_latency: float | str | None = None,
    ) -> None:
        """Plans anew for another T or S, keeping of the preload buffer what the new plan wants too.

        Where that is refused or interrupted, everything stays as it was.
        """
        changes = {
            "target_latency": target_latency,
            "preload_budget": preload_budget,
            "target_token_latency": target_token_latency,
        }
        with self._engines.layers.quiet_turn():
            config = self.config.replaced(**{name: v for name, v in changes.items() if v is not None})
            self._engines.replan(config)
            self.config = config
            self._engines.layers.prefetch()

    def use(self, plan: ExecutionPlan) -> None:
        """Runs this plan of the layers from now on, whatever the number of tokens, until the next `replan`.

        Raises `PlanError` for a plan of another store.
        """
        check_plan(plan, self.store)
        with self._engines.layers.quiet_turn():
            self._engines.layers.rebook(self._engines.layers.book.pinned(plan))

    def prefetch(self) -> None:
        """Starts reading for the next inference, as far ahead as the staging buffer allows."""
        self._engines.layers.prefetch()

    def memory(self) -> dict[str, int]:
        """Bytes in memory now: resident weights, preload, staging, working buffer, and key/value caches that are in
        use; and the most there ever were."""
        model = None if self._model is None else self._model()
        around = 0 if model is None else tensor_bytes(model)
        memory = self._engines.memory()
        return {**memory, "resident": memory["resident"] + around, "peak": memory["peak"] + around}

    @property
    def stored_weights(self) -> int:
        """How many weights are in shards."""
        return self.store.grid.weights

    def close(self) -> None:
        """Stops reading and gives back memory, threads and files; the model cannot run any more."""
        self._engines.close()

    def __enter__(self) -> STISession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def attach(self, model: PreTrainedModel) -> None:
        """Makes `model`, a stock one whose weights may be missing yet, run from this session. Raises `StoreError`."""
        if self._model is not None:
            raise UnsupportedUseError("This session has a model already: open another one.")
        attach(model, self.store, Forwards(self._engines.layers))
        self._model = weakref.ref(model)
        setattr(model, "sti", self)  # noqa: B010 - mypy takes modules' attributes for tensors

    def reopening(self, model: Any) -> Reopening:
        """How to open `model`, which runs from this session, once more."""
        return reopening_of(self, model)


def tensor_bytes(model: PreTrainedModel) -> int:
    """Bytes of a model's parameters and buffers, each memory counted once."""
    tensors = (*model.parameters(), *model.buffers())
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def reopening_of(session: Any, model: Any) -> Reopening:
    """How to open once more a model that runs from a session."""
    if session.reopen is None:
        raise UnsupportedUseError("This model cannot be copied or pickled: it was not made by from_pretrained.")
    reopening: Reopening = session.reopen(model)
    return reopening

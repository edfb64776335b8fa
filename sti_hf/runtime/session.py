"""STISession: what `model.sti` is, and what a user calls."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from sti_hf.config import STIConfig
from sti_hf.errors import UnsupportedUseError
from sti_hf.model import architecture_of
from sti_hf.model.vocabulary import VOCABULARY
from sti_hf.planning import ExecutionPlan, Planner
from sti_hf.runtime.attach import attach
from sti_hf.runtime.engine import Engine
from sti_hf.runtime.forwards import Forwards
from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.modules.part import StoredPart
from sti_hf.runtime.plan_book import PlanBook
from sti_hf.runtime.shares import LAYERS, part_shares
from sti_hf.runtime.timeline import RunTimeline
from sti_hf.shards.store import ShardStore

Reopening = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function that opens a model again, and its arguments: all of them can be pickled."""


class STISession(StoredPart):
    """Runs a model from its store. Reading begins at once; one forward runs at a time, other threads wait their turn.

    It closes at the end of a `with` block, or when neither the model nor a part of it is used any more.

    Args:
        store, config: what to run, and how.
        planner: makes the plans of the layers.
        path, rate_limit: how it is computed, and the bytes a second at which it is read (0: all).
        vocabulary: makes the plans of the strips of the vocabulary, which shares T and S with the layers in proportion
            to their weights. None: the model has none, or its table of full weights is streamed.
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
        architecture = architecture_of(store.stack.model_type)
        self._vocabulary: Engine | None = None
        self._strips = store.vocabulary if vocabulary is not None else None
        if vocabulary is not None and self._strips is not None:
            book = PlanBook(vocabulary, self._shares(config)[VOCABULARY])
            self._vocabulary = Engine(architecture, book, self._strips, path, rate_limit)
        try:
            book = PlanBook(planner, self._shares(config)[LAYERS])
            self._engine = Engine(architecture, book, store, path, rate_limit, self._vocabulary)
        except BaseException:
            if self._vocabulary is not None:
                self._vocabulary.close()
            raise
        self._engine.prefetch()

    @property
    def plan(self) -> ExecutionPlan:
        """The plan of the layers that ran last, or will run next."""
        return self._engine.streamer.prepared.plan

    @property
    def vocabulary_plan(self) -> ExecutionPlan | None:
        """The plan of the strips of the vocabulary, which run behind the layers; None where the model has none."""
        return None if self._vocabulary is None else self._vocabulary.streamer.prepared.plan

    @property
    def last_run(self) -> RunTimeline | None:
        """What the last inference took."""
        return self._engine.last_run

    def replan(self, target_latency: float | str | None = None, preload_budget: int | str | None = None) -> None:
        """Plans anew for another T or S, keeping of the preload buffer what the new plan wants too.

        Where that is refused or interrupted, everything stays as it was.
        """
        changes = {"target_latency": target_latency, "preload_budget": preload_budget}
        with self._engine.quiet_turn():
            config = self.config.replaced(**{name: v for name, v in changes.items() if v is not None})
            shares, tokens = self._shares(config), self.plan.workload.tokens
            before = None if self._vocabulary is None else self._vocabulary.book
            if self._vocabulary is not None:
                self._vocabulary.replan(shares[VOCABULARY], None)
            try:
                self._engine.replan(shares[LAYERS], tokens)
            except BaseException:
                if self._vocabulary is not None and before is not None:
                    self._vocabulary.rebook(before)
                raise
            self.config = config
            self._engine.prefetch()

    def use(self, plan: ExecutionPlan) -> None:
        """Runs this plan of the layers from now on, whatever the number of tokens, until the next `replan`."""
        with self._engine.quiet_turn():
            self._engine.rebook(self._engine.book.pinned(plan))

    def prefetch(self) -> None:
        """Starts reading for the next inference, as far ahead as the staging buffer allows."""
        self._engine.prefetch()

    def memory(self) -> dict[str, int]:
        """Bytes of weights in memory now: resident, preload, staging, working buffer; and the most there ever were."""
        model = None if self._model is None else self._model()
        resident = self._engine.tables.resident_bytes + (0 if model is None else tensor_bytes(model))
        sizes = [engine.buffer_sizes() for engine in self._engines]
        buffers = {name: sum(each[name] for each in sizes) for name in sizes[0]}
        most = sum(engine.most_buffered for engine in self._engines)
        return {"resident": resident, **buffers, "peak": resident + most}

    @property
    def stored_weights(self) -> int:
        """How many weights are in shards."""
        return self.store.grid.weights

    def close(self) -> None:
        """Stops reading and gives back memory, threads and files; the model cannot run any more."""
        for engine in self._engines:
            engine.close()

    @property
    def _engines(self) -> list[Engine]:
        return [engine for engine in (self._engine, self._vocabulary) if engine is not None]

    def _shares(self, config: STIConfig) -> dict[str, STIConfig]:
        """What of T and of the budgets the layers have, and the vocabulary, where it runs from its strips."""
        return part_shares(config, self.store, self._strips)

    def __enter__(self) -> STISession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def attach(self, model: PreTrainedModel) -> None:
        """Makes `model`, a stock one whose weights may be missing yet, run from this session. Raises `StoreError`."""
        if self._model is not None:
            raise UnsupportedUseError("This session has a model already: open another one.")
        attach(model, self.store, Forwards(self._engine))
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

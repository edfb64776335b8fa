"""StackedSession: what `model.sti` is where a model has several stacks."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from transformers import PreTrainedModel

from sti_hf.config import STIConfig
from sti_hf.errors import UnsupportedUseError
from sti_hf.model.stacks import stack_models
from sti_hf.runtime.modules.part import StoredPart
from sti_hf.runtime.modules.stored_model import take_methods
from sti_hf.runtime.session import Reopening, STISession, reopening_of, tensor_bytes
from sti_hf.runtime.shares import shared_out
from sti_hf.shards.store import ShardStore


class StackedSession(StoredPart):
    """Runs a model of several stacks from its store: each by a session of its own, which is `sti` of that part of the
    model (`model.vision_model.sti.plan`).

    They share T, S and a memory budget in proportion to their weights: T is the time of a forward that runs all of
    them, one after the other.
    """

    def __init__(
        self, store: ShardStore, config: STIConfig, open_stack: Callable[[ShardStore, STIConfig], STISession]
    ):
        self.store, self.config = store, config
        self.reopen: Callable[[Any], Reopening] | None = None
        self.stacks: dict[str, STISession] = {}
        self._model: weakref.ref[PreTrainedModel] | None = None
        try:
            for path, share in stack_shares(config, self.store).items():
                self.stacks[path] = open_stack(store.stacks[path], share)
        except BaseException:
            self.close()
            raise

    def replan(self, target_latency: float | str | None = None, preload_budget: int | str | None = None) -> None:
        """Plans anew for another T or S, which the stacks share.

        Where that is refused or interrupted, everything stays as it was.
        """
        changes = {"target_latency": target_latency, "preload_budget": preload_budget}
        config = self.config.replaced(**{name: v for name, v in changes.items() if v is not None})
        before = {path: session.config for path, session in self.stacks.items()}
        replanned: list[str] = []
        try:
            for path, share in stack_shares(config, self.store).items():
                replanned.append(path)
                self.stacks[path].replan(share.target_latency, share.preload_budget)
        except BaseException:
            for path in replanned[:-1]:
                self.stacks[path].replan(before[path].target_latency, before[path].preload_budget)
            raise
        self.config = config

    def prefetch(self) -> None:
        """Starts reading for the next inference, as far ahead as the staging buffers allow."""
        for session in self.stacks.values():
            session.prefetch()

    def memory(self) -> dict[str, int]:
        """Bytes of weights in memory now: resident, preload, staging, working buffer, of all stacks and what is around
        them; and the most there ever were."""
        parts = [session.memory() for session in self.stacks.values()]
        sums = {name: sum(part[name] for part in parts) for name in parts[0]}
        around = self._around()
        return {**sums, "resident": sums["resident"] + around, "peak": sums["peak"] + around}

    @property
    def stored_weights(self) -> int:
        """How many weights are in shards."""
        return sum(session.stored_weights for session in self.stacks.values())

    def close(self) -> None:
        """Stops reading and gives back memory, threads and files; the model cannot run any more."""
        for session in self.stacks.values():
            session.close()

    def __enter__(self) -> StackedSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def attach(self, model: PreTrainedModel) -> None:
        """Makes each stack of `model`, a stock one whose weights may be missing yet, run from its session.

        Raises `StoreError`, and `UnsupportedUseError` where the model has not the stacks of the store.
        """
        parts = stack_models(model)
        if parts.keys() != self.stacks.keys():
            raise UnsupportedUseError(
                f"{type(model).__name__} has the stacks {', '.join(parts)}, and the store {self.store.path} has "
                f"{', '.join(self.stacks)}: shard the checkpoint as that class."
            )
        for path, session in self.stacks.items():
            session.attach(parts[path])
            session.reopen = _refuse_to_reopen
        model.requires_grad_(False)
        take_methods(model)
        self._model = weakref.ref(model)
        setattr(model, "sti", self)  # noqa: B010 - mypy takes modules' attributes for tensors

    def reopening(self, model: Any) -> Reopening:
        """How to open `model`, which runs from this session, once more."""
        return reopening_of(self, model)

    def __getattr__(self, name: str) -> Any:
        if name in ("plan", "last_run", "use"):
            paths = " or ".join(f"model.{path}.sti.{name}" for path in self.store.index.stacks)
            raise AttributeError(f"Each stack of this model has its own: {paths}.")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

    def _around(self) -> int:
        """Bytes of the model's tensors that belong to no stack."""
        model = None if self._model is None else self._model()
        return 0 if model is None else tensor_bytes(model) - sum(map(tensor_bytes, stack_models(model).values()))


def stack_shares(config: STIConfig, store: ShardStore) -> dict[str, STIConfig]:
    """The share that each stack of a store has of T and of the budgets: in proportion to its weights."""
    return shared_out(config, {path: stack.grid.weights for path, stack in store.stacks.items()})


def _refuse_to_reopen(part: Any) -> NoReturn:
    raise UnsupportedUseError("A part of a model cannot be copied or pickled by itself: copy the model.")

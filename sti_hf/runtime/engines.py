"""What runs a model: its layers and, behind them, the strips of its vocabulary."""

from __future__ import annotations

from sti_hf.config import STIConfig
from sti_hf.model import architecture_of
from sti_hf.model.vocabulary import VOCABULARY
from sti_hf.planning import Planner
from sti_hf.runtime.engine import Engine
from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.plan_book import PlanBook
from sti_hf.runtime.shares import LAYERS, part_shares
from sti_hf.shards.store import ShardStore


class Engines:
    """The engine of a model's `layers`, and that of its `vocabulary`, None where that does not run in strips.

    They share T and the budgets of a configuration in proportion to their weights. Reading begins at once.

    Args:
        store, config: what to run, and how.
        planner: makes the plans of the layers.
        path, rate_limit: how it is computed, and the bytes a second at which it is read (0: all).
        vocabulary: makes the plans of the strips of the vocabulary. None: the model has none, or its table of full
            weights is streamed.
    """

    def __init__(
        self,
        store: ShardStore,
        config: STIConfig,
        planner: Planner,
        path: ComputePath,
        rate_limit: float,
        vocabulary: Planner | None,
    ) -> None:
        self._store, self._strips = store, None if vocabulary is None else store.vocabulary
        self.vocabulary: Engine | None = None
        architecture, shares = architecture_of(store.stack.model_type), self._shares(config)
        if vocabulary is not None and self._strips is not None:
            book = PlanBook(vocabulary, shares[VOCABULARY], part="the vocabulary")
            self.vocabulary = Engine(architecture, book, self._strips, path, rate_limit)
        try:
            book = PlanBook(planner, shares[LAYERS], part="" if self.vocabulary is None else "the layers")
            self.layers = Engine(architecture, book, store, path, rate_limit, self.vocabulary)
        except BaseException:
            if self.vocabulary is not None:
                self.vocabulary.close()
            raise
        self.layers.prefetch()

    def replan(self, config: STIConfig) -> None:
        """Plans anew; or raises, and everything stays as it was. In a turn, outside of any inference."""
        layers, vocabulary, shares = self.layers, self.vocabulary, self._shares(config)
        tokens = layers.streamer.prepared.plan.workload.tokens
        book = layers.book.replanned(shares[LAYERS], tokens)
        if vocabulary is None:
            layers.rebook(book)
            return
        before = vocabulary.book
        vocabulary.rebook(before.replanned(shares[VOCABULARY], None))
        try:
            layers.rebook(book)
        except BaseException:
            vocabulary.rebook(before)
            raise

    def memory(self) -> dict[str, int]:
        """Bytes of embedding checksums (resident), of the buffers and of key/value caches; and the most there were."""
        sizes = [engine.buffer_sizes() for engine in self._all]
        buffers = {name: sum(each[name] for each in sizes) for name in sizes[0]}
        generations, resident = self.layers.generations, self.layers.tables.resident_bytes
        most = resident + generations.most_cached + sum(engine.most_buffered for engine in self._all)
        return {"resident": resident, **buffers, "cache": generations.cached_bytes, "peak": most}

    def close(self) -> None:
        """Stops reading and gives back memory, threads and files; nothing runs any more."""
        for engine in self._all:
            engine.close()

    @property
    def _all(self) -> list[Engine]:
        return [engine for engine in (self.layers, self.vocabulary) if engine is not None]

    def _shares(self, config: STIConfig) -> dict[str, STIConfig]:
        return part_shares(config, self._store, self._strips)

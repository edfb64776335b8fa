"""StorePlanner: plans for a store on a device, kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from sti_hf.config import DEFAULT_SEQ_LEN, STIConfig
from sti_hf.errors import ConfigurationError
from sti_hf.forking import cached_property
from sti_hf.integrations.model_classes import stock_class
from sti_hf.integrations.plan_cache import cached_plan, file_state
from sti_hf.integrations.store_cache import cache_home
from sti_hf.model import Architecture, get_architecture
from sti_hf.model.stacks import stack_configs
from sti_hf.planning import (
    DeviceProfile,
    ExecutionPlan,
    ImportanceProfile,
    PlanRequest,
    Workload,
    linear_profile,
    make_plan,
    predict_latency,
)
from sti_hf.planning.importance_file import DEFAULT_ORDER, profile_path, read_profile, submodel_accuracy
from sti_hf.planning.refinement import PLANE_FIDELITIES
from sti_hf.runtime.blocks import working_weights
from sti_hf.runtime.gemm import ComputePath
from sti_hf.shards.index import INDEX_FILE, Table
from sti_hf.shards.layout import FULL
from sti_hf.shards.store import ShardStore, store_defaults

ELASTIC = "sti_elastic"
"""Field of a checkpoint's config.json, and so of its store's: true where it was trained so that its parts keep its
accuracy. `eval/train_elastic.py` writes it."""


class StorePlanner:
    """The `Planner` of a store on a profiled device, for models of a class (None: of the one that was sharded).

    `vocabulary` is that of the strips of the vocabulary; None where the model has none.
    """

    def __init__(
        self, store: ShardStore, profile: DeviceProfile, model_class: type[PreTrainedModel] | None = None
    ) -> None:
        self.store, self.profile, self._model_class = store, profile, model_class
        self._heads = _streamed_heads(store, model_class)
        self._table_seconds = sum(profile.io_seconds(table.rows * table.row_bytes, 1) for table in self._heads)
        self.vocabulary: StorePlanner | None = None
        if self._heads and store.vocabulary is not None:
            cut = store.vocabulary.grid
            layer_weights = store.grid.slices * store.grid.slice_weights
            of_strips = linear_profile(profile, layer_weights, cut.slices, cut.slice_weights)
            self.vocabulary = StorePlanner(store.vocabulary, of_strips, model_class)
        # Read once: the store may be moved while a model runs from it.
        self._config: dict[str, Any] = json.loads((store.path / "config.json").read_text())
        self._importance: dict[str, tuple[ImportanceProfile, dict[tuple[int, int], float]]] = {}

    def plan(self, config: STIConfig, workload: Workload, submodel: tuple[int, int] | None = None) -> ExecutionPlan:
        """The plan for a configuration and a workload, from the cache, or made and put there.

        Raises `ConfigurationError` where the configuration names a longer input than the model takes, and `PlanError`
        where its memory budget is too small.
        """
        importance = self._importance_name(config)
        key = {
            "store": [
                self.store.index.fingerprint,
                self.store.stack_name,
                self.store.is_vocabulary,
                file_state(self.store.path / INDEX_FILE),
            ],
            "importance": file_state(profile_path(self.store, importance)) if importance else None,
            "profile": self.profile.to_json(),
            "config": config.to_dict(),
            "elastic": self.is_elastic,
            "workload": asdict(workload),
            "heads": [table.offset for table in self._heads],
            "submodel": submodel,
        }
        return cached_plan(
            cache_home() / "plans", key, lambda: make_plan(self.request(config, workload).changed(submodel=submodel))
        )

    def vocabulary_for(self, config: STIConfig) -> StorePlanner | None:
        """`vocabulary`, where it runs in strips: at full fidelity its table is streamed."""
        return None if config.fidelity == FULL else self.vocabulary

    def workload(self, config: STIConfig, tokens: int | None = None) -> Workload:
        """The workload that sequences of so many tokens are planned for; None: of as many as `config`, or the model's
        own configuration of images, names."""
        architecture, own = self._own
        if self.store.is_vocabulary and self._writes:
            return Workload(1, config.batch_size)
        if architecture.exact_tokens:
            return Workload(tokens or architecture.longest_input(own), config.batch_size)
        planned = Workload.bucket(tokens or config.seq_len)
        if architecture.bounds_positions(own):
            planned = max(min(planned, architecture.longest_input(own)), tokens or 1)
        return Workload(planned, config.batch_size)

    def latency(self, plan: ExecutionPlan, workload: Workload) -> float:
        """Predicted seconds of a plan's forward, its preload buffer filled, with another workload than its own."""
        request = self._bare_request(plan.target_latency, plan.preload_budget, workload, plan.is_full)
        return predict_latency(request, plan)

    @property
    def is_elastic(self) -> bool:
        """Whether the store's checkpoint was trained so that its parts keep its accuracy."""
        return self._config.get(ELASTIC) is True

    def request(self, config: STIConfig, workload: Workload) -> PlanRequest:
        """Everything that the plan for a configuration and a workload depends on."""
        self._check_length(config)
        importance, accuracy = self._importance_of(config)
        elastic = config.submodels == "measured" and self.is_elastic
        full = config.fidelity == FULL
        return self._bare_request(config.target_latency, config.preload_budget, workload, full).changed(
            strategy=config.strategy,
            fidelity=config.fidelity,
            allocator=config.allocator,
            importance=importance,
            submodels="any" if elastic else config.submodels,
            submodel_accuracy=accuracy,
            max_loss=config.max_loss,
            staging_budget=config.staging_budget,
            memory_budget=config.memory_budget,
            fidelities=PLANE_FIDELITIES if config.refine else (),
        )

    def _bare_request(self, target_latency: float, preload_budget: int, workload: Workload, full: bool) -> PlanRequest:
        """What is the same for all that is asked for; `full`: of a plan at full fidelity, or none."""
        store, grid = self.store, self.store.grid
        dtype = ComputePath(self.profile.compute_dtype, self.profile.gemm).torch_dtype
        return PlanRequest(
            store.layouts,
            self.profile,
            target_latency,
            preload_budget,
            workload,
            row_bytes=store.row_bytes,
            position_bytes=store.position_bytes(workload.tokens),
            extra_seconds=self._table_seconds if full or self.vocabulary is None else 0.0,
            working_bytes=tuple(
                working_weights(grid, width, dtype) * dtype.itemsize for width in range(1, grid.slices + 1)
            ),
        )

    def _check_length(self, config: STIConfig) -> None:
        # The default is no wish: models that take less are planned for it all the same.
        if config.seq_len <= DEFAULT_SEQ_LEN:
            return
        architecture, own = self._own
        longest = architecture.longest_input(own)
        if config.seq_len > longest:
            raise ConfigurationError(
                f"seq_len is {config.seq_len}, and the longest input of this model has {longest} tokens."
            )

    @cached_property
    def _own(self) -> tuple[Architecture, PreTrainedConfig]:
        """The family of the stack, and its configuration."""
        assert self.store.stack_name is not None
        own = stack_configs(AutoConfig.for_model(**self._config))[self.store.stack_name]
        return get_architecture(own), own

    @cached_property
    def _writes(self) -> bool:
        """Whether its models write texts, for which the logits of the last position alone are asked for."""
        model_class = self._model_class or stock_class(AutoConfig.for_model(**self._config))
        return bool(model_class.can_generate())

    def _importance_name(self, config: STIConfig) -> str | None:
        return named_importance(config, self._config.get("quantization_config", {}))

    def _importance_of(self, config: STIConfig) -> tuple[ImportanceProfile | None, dict[tuple[int, int], float]]:
        """The importance profile to plan with, None for the default order, and the accuracy of submodels, as far as
        that was measured."""
        name = self._importance_name(config)
        if name is None:
            return None, {}
        if name not in self._importance:
            profile, facts = read_profile(self.store, name)
            self._importance[name] = profile, submodel_accuracy(self.store, facts)
        return self._importance[name]


def plan_store(
    store: ShardStore,
    profile: DeviceProfile,
    config: STIConfig,
    workload: Workload,
    model_class: type[PreTrainedModel] | None = None,
) -> ExecutionPlan:
    """The plan of a `StorePlanner`, made anew."""
    return make_plan(StorePlanner(store, profile, model_class).request(config, workload))


def importance_name(store: ShardStore, config: STIConfig) -> str | None:
    """The importance profile that a configuration, or else the store, names; None for the default order."""
    return named_importance(config, store_defaults(store.path))


def named_importance(config: STIConfig, defaults: Mapping[str, Any]) -> str | None:
    """As `importance_name`, from the store's `defaults`."""
    if config.strategy != "sti":
        return None
    name = config.importance or defaults.get("importance") or DEFAULT_ORDER
    return None if name == DEFAULT_ORDER else name


def _streamed_heads(store: ShardStore, model_class: type[PreTrainedModel] | None) -> list[Table]:
    """The tables that a forward streams for its head over the vocabulary. Only classes with such a head can tie it."""
    if model_class is None:
        return [table for table in store.stack.tables.values() if table.decoders]
    tied = getattr(model_class, "_tied_weights_keys", None) or {}
    return [
        table
        for table in store.stack.tables.values()
        if any(f"{decoder}.weight" in tied for decoder in table.decoders)
    ]

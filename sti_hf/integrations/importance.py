"""From a store, and a task's dataset or a text, to an importance profile in the store."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from sti_hf.errors import ConfigurationError
from sti_hf.integrations.full_model import full_model
from sti_hf.integrations.profiled_tasks import Choice, LabelledTask, Prepared, Profiled, RunningText
from sti_hf.integrations.store_cache import cache_home
from sti_hf.integrations.tokenizer import load_tokenizer
from sti_hf.model import get_architecture
from sti_hf.model.layer_runner import LayerRunner
from sti_hf.planning.importance_file import (
    METHODS,
    StoredProfile,
    best_first,
    examples_of,
    profile_path,
    store_identity,
    write_profile,
)
from sti_hf.profiling.heat_map import check_matplotlib, save_heat_map
from sti_hf.profiling.importance import check_base, measure_exhaustive, measure_submodels
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.profiling.shared_work import SharedWork
from sti_hf.profiling.tasks import Task, get_task
from sti_hf.shards.reorder import reorder_store
from sti_hf.shards.store import ShardStore, store_defaults
from sti_hf.shards.whole import write_whole

TIMEOUT = timedelta(days=7)
"""Processes wait this long for the slowest: exhaustive profiling may take long."""


@dataclass(frozen=True, eq=False)
class MeasuredImportance:
    """A profile that was put into a store, its picture beside it, with the facts of how it was measured."""

    name: str
    path: Path
    picture: Path
    profile: StoredProfile
    facts: dict[str, Any]


def profile_importance(
    store: ShardStore | str | Path,
    task: Task | str | None = None,
    *,
    texts: str | Path | None = None,
    method: str = "effects",
    name: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    part: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    metric: str | None = None,
    base_bits: int | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
) -> MeasuredImportance:
    """Measures what the shards of a store are worth, for a task or as a language model, and makes that the default.

    The profile, a picture of it, and where there are labels the accuracy of n x m submodels go into the store. Run by
    several processes (`accelerate launch`; on several machines the store must have one path), they share the work and
    all return the same. What an interrupted run has done is taken up by the next.

    Language models are profiled on `texts`: effects are of the distribution of the next token, and the metric of
    submodels is `relative_likelihood`, the full model's perplexity divided by theirs (at most 1). So `max_loss` 2 lets
    the perplexity grow by 2 per cent; it was chosen for being perplexity, on a scale that all models share.

    Args:
        store: or its folder. It must have the full weights and a tokenizer.
        task: or the name of a GLUE task.
        texts: instead of a task, a UTF-8 file with running text, for a model with a causal head.
        method: "effects" (needs no labels) or "exhaustive" (the paper's).
        name: of the profile; None: the task's, or "language".
        dataset, split: as `load_examples` takes them; None: the task's.
        part: half to profile on, so that the other one is left to report on; None: "first" of a task's split, "all" of
            texts.
        samples: at most so many examples, or windows; None: all of the part, or 32 windows.
        seed: of the halves and samples.
        metric: folder of an `evaluate` metric; None: the task's.
        base_bits: the fidelity from which shards are raised; None: the lowest, for "exhaustive" the lowest at which
            the metric still moves (`choose_base`).
        batch_size: sentences, or windows, in a batch; None: 32, or 4.
        max_length: tokens to which sentences are cut, or of a window; None: 128, or 256.

    Raises `ValueError` or `OSError` with one sentence, before anything is measured, for an input that will not do.
    """
    store = store if isinstance(store, ShardStore) else ShardStore.open(store)
    choice = Choice(part, samples, seed, batch_size, max_length)
    profiled = _profiled(task, texts, choice, {"dataset": dataset, "split": split, "metric": metric})
    name = name or profiled.name
    _check(store, profiled, method, name, base_bits)
    tokenizer = load_tokenizer(store)
    profiled.load(tokenizer, method)
    state = _processes()
    model = full_model(store)
    prepared = profiled.prepare(model, tokenizer)
    work = SharedWork(_work_folder(store, prepared), state)
    profile, found = _measure(model, store, prepared, work, method, base_bits)
    path = profile_path(store, name)
    measured = MeasuredImportance(name, path, path.with_suffix(".png"), profile, prepared.facts | found)
    if state.is_main_process:
        _put_into_store(store, measured)
    work.forget()
    return measured


def _profiled(
    task: Task | str | None, texts: str | Path | None, choice: Choice, of_task: dict[str, str | None]
) -> Profiled:
    """What is profiled on. Raises `ConfigurationError` unless that is one thing."""
    if (task is None) == (texts is None):
        raise ConfigurationError("Give either a task, or texts for a language model, and not both.")
    if task is not None:
        return LabelledTask(task if isinstance(task, Task) else get_task(task), choice, **of_task)
    assert texts is not None
    given = [name for name, value in of_task.items() if value is not None]
    if given:
        raise ConfigurationError(f"{given[0]} belongs to a task, and texts have none; leave it out.")
    return RunningText(texts, choice)


def _processes() -> PartialState:
    """The processes that share the work, this one among them."""
    state = PartialState(cpu=True, timeout=TIMEOUT)
    # What `accelerate launch --num_processes N` sets even where it starts one process.
    if state.num_processes == 1 and {"MASTER_PORT", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
        warnings.warn("accelerate has started one process only; without GPUs, launch with --multi_gpu.", stacklevel=3)
    return state


def set_default_importance(store: ShardStore, name: str) -> None:
    """Makes the profile called `name` the one that plans for this store use if they are told nothing else."""
    config = json.loads((store.path / "config.json").read_text())
    config["quantization_config"]["importance"] = name
    write_whole(store.path / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def _check(store: ShardStore, profiled: Profiled, method: str, name: str, base_bits: int | None) -> None:
    """Raises `ValueError` for what is known to be wrong before anything is loaded."""
    profile_path(store, name)
    if method not in METHODS:
        raise ConfigurationError(f"method must be one of {', '.join(METHODS)}, not {method!r}.")
    if base_bits is not None:
        check_base(base_bits)
    profiled.check(store, method)
    if store.index.full_dtype is None:
        raise ConfigurationError(
            f"The store {store.path} has no full weights, which profiling compares with; shard the model again, "
            "without --no-full."
        )
    check_matplotlib()


def _measure(
    model: PreTrainedModel,
    store: ShardStore,
    prepared: Prepared,
    work: SharedWork,
    method: str,
    base_bits: int | None,
) -> tuple[StoredProfile, dict[str, Any]]:
    """The profile, and the facts of how it was measured. Overwrites the model's weights."""
    profile: StoredProfile
    if method == "effects":
        profile, facts = _effects(model, store, prepared, work.state, base_bits)
    if prepared.evaluation is not None:
        weights, runner = PlanWeights(model, store), LayerRunner(model)
        if method == "exhaustive":
            profile, facts = measure_exhaustive(runner, weights, prepared.evaluation, work, base_bits)
        facts["submodels"] = measure_submodels(runner, weights, prepared.evaluation, work, profile.order())
    return profile, facts


def _effects(
    model: PreTrainedModel, store: ShardStore, prepared: Prepared, state: PartialState, base_bits: int | None
) -> tuple[StoredProfile, dict[str, Any]]:
    """The profile that the main process measures, for all processes, and the facts of it."""
    from sti_hf.planning.effects import EffectsImportance
    from sti_hf.profiling.effects import measure_effects

    base_bits = base_bits or store.fidelities[0]
    arrays: list[Any] = [None]
    if state.is_main_process:
        inputs = [batch.inputs for batch in prepared.batches]
        with logging.tqdm(total=None, desc="Profiling effects") as bar:
            effects = measure_effects(
                model, store, inputs, base_bits=base_bits, progress=bar.update, outputs=prepared.outputs
            )
        arrays = [effects.arrays()]
    broadcast_object_list(arrays)
    return EffectsImportance.from_arrays(arrays[0]), {"base_bits": base_bits}


def _work_folder(store: ShardStore, prepared: Prepared) -> Path:
    """Where what was done is kept for the next run of the same kind."""
    what = [store_identity(store), prepared.facts, prepared.key]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
    return cache_home() / "importance" / key


def _put_into_store(store: ShardStore, measured: MeasuredImportance) -> None:
    write_profile(store, measured.name, measured.profile, measured.facts)
    in_checkpoint = np.take_along_axis(measured.profile.worth(), np.argsort(store.stack.slice_order, axis=1), axis=1)
    method, facts = measured.profile.method, measured.facts
    title = f"{measured.name}: {method}, {examples_of(facts)}, from {facts['base_bits']} bits"
    unit = "worth" if method == "effects" else f"worth ({facts['metric']})"
    save_heat_map(measured.picture, in_checkpoint, title, unit)
    set_default_importance(store, measured.name)


def reorder_by_importance(
    store: ShardStore, name: str | None = None, progress: Callable[[int], object] = lambda layers: None
) -> ShardStore:
    """Rewrites a store so that in each layer the slices stand first that a profile takes for the most important.

    `name` None: the store's default profile. Raises `ValueError` where there is no such profile.
    """
    name = name or store_defaults(store.path).get("importance")
    if name is None:
        raise ConfigurationError(
            f"The store {store.path} has no default importance profile; name one, or profile it first."
        )
    architecture = get_architecture(AutoConfig.from_pretrained(store.path))
    return reorder_store(store, architecture, best_first(store, name).tolist(), progress)

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import BertForSequenceClassification

from sti_hf import ShardStore, shard_checkpoint
from sti_hf.planning.effects import LEVELS, EffectsImportance
from sti_hf.planning.importance_file import write_profile
from tests.integrations.checkpoints import checkpoint, use_known_device

NAME = "a <b>bold & $store"
"""What HTML, JSON and templates would take for something else."""

SUBMODELS = [[1, 4, 0.5], [3, 2, 0.625], [3, 4, 0.75]]


@pytest.fixture(autouse=True, scope="module")
def _known_device() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_known_device(monkeypatch)
        yield


@pytest.fixture(scope="session")
def bare_store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    """A store without importance profile. Not to be changed."""
    folder = tmp_path_factory.mktemp("reporting")
    model = checkpoint(BertForSequenceClassification, folder / "model")
    return shard_checkpoint(model, folder / NAME, quantizer="gobo")


@pytest.fixture(scope="session")
def store(bare_store: ShardStore, tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    """That store with a profile called "mood". Not to be changed."""
    store = ShardStore.open(shutil.copytree(bare_store.path, tmp_path_factory.mktemp("profiled") / NAME))
    effects = np.random.default_rng(0).normal(size=(store.grid.layers, store.grid.slices, len(LEVELS), 8))
    effects *= 4.0 ** -np.array(LEVELS)[:, None]
    order = [list(order) for order in store.stack.slice_order]
    submodels = [{"slice_order": order, "bits": 6, "accuracy": SUBMODELS}]
    facts = {"sentences": 8, "metric": "accuracy", "base_bits": 2, "submodels": submodels}
    write_profile(store, "mood", EffectsImportance(effects), facts)
    return store


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pages are written."""
    return tmp_path_factory.mktemp("pages")

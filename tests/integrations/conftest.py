from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

from sti_hf import shard_checkpoint
from sti_hf.integrations import device_profiles
from tests.integrations.checkpoints import checkpoint, use_known_device
from tests.integrations.measuring import Machine


@pytest.fixture(autouse=True)
def _known_device(monkeypatch: pytest.MonkeyPatch) -> None:
    use_known_device(monkeypatch)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a sequence classifier. Not to be changed."""
    return checkpoint(BertForSequenceClassification, tmp_path_factory.mktemp("checkpoints") / "classifier")


@pytest.fixture(scope="session")
def classifier_store(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of that classifier. Not to be changed."""
    return shard_checkpoint(classifier, tmp_path_factory.mktemp("stores") / "classifier", quantizer="lloyd").path


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of one's own."""
    home = tmp_path / "home"
    monkeypatch.setenv("STI_HOME", str(home))
    return home


@pytest.fixture
def machine(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """What is measured instead of this device, for an empty cache."""
    made = Machine()
    monkeypatch.setattr(device_profiles, "measure_device", made)
    return made

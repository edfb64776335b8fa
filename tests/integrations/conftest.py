from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

from sti_hf import shard_checkpoint
from tests.integrations.checkpoints import checkpoint, use_known_device


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

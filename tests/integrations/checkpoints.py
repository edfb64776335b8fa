"""Checkpoints of tiny models as a user has them: folders that `save_pretrained` wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertTokenizer, PreTrainedModel

from sti_hf import shard_checkpoint
from sti_hf.errors import SourceError
from sti_hf.integrations import device_profiles
from sti_hf.planning import DeviceProfile
from sti_hf.profiling.device import MeasuredDevice
from tests.models import VOCABULARY, tiny_model

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cold", "model", "answers", ".", "{", "}")

STOCK = {
    "strategy": "preload",
    "fidelity": 32,
    "compute_dtype": "float32",
    "target_latency": 1.0,
    "quantizer": "gobo",  # the quickest
}
"""`sti_config` of the full grid at full fidelity: a model that computes what the stock model does."""

DEVICE = DeviceProfile(
    request_seconds=1e-5,
    bytes_per_second=1e8,
    row_seconds=1e-6,
    delay_per_byte=1e-10,
    tokens=(16, 128),
    widths=(1, 4),
    layer_seconds=((1e-4, 2e-4), (2e-4, 4e-4)),
    pairs=(16**2, 128**2),
    attention_seconds=(0.0, 1e-4),
    decompress_seconds={bits: 1e-10 for bits in (2, 3, 4, 5, 6, 32)},
    before_seconds=(5e-5, 5e-5),
    after_seconds=(5e-5, 5e-5),
    compute_dtype="float32",
    gemm="default",
)


def use_known_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes `DEVICE` for what measuring this device would find, which takes a while."""
    measured = MeasuredDevice(DEVICE, busy=False)
    monkeypatch.setattr(device_profiles, "measure_device", lambda *arguments, **options: measured)


def save_checkpoint(model: PreTrainedModel, folder: Path) -> Path:
    """Saves a model, with a tokenizer that knows `WORDS`."""
    model.save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    vocabulary |= {f"word{index}": index for index in range(len(WORDS), VOCABULARY)}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def checkpoint(model_class: type[PreTrainedModel], folder: Path, **overrides: Any) -> Path:
    """The checkpoint of a tiny model."""
    return save_checkpoint(tiny_model(model_class, **overrides), folder)


def difference(one: Any, other: Any) -> float:
    """The largest difference between two outputs of a model, which must have the same entries."""
    assert type(one) is type(other)
    assert one.keys() == other.keys()
    pairs = [(one[key], other[key]) for key in one if isinstance(one[key], torch.Tensor)]
    assert pairs
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a.float() - b.float()).abs().max()) for a, b in pairs)


def edited(source: Path, folder: Path, **fields: Any) -> Path:
    """A copy of a checkpoint with other fields in its configuration."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


def refused(source: Path, folder: Path, sentence: str, **options: Any) -> str:
    """That it is refused to be sharded, in one sentence, which is returned, and that nothing is left of it."""
    with pytest.raises(SourceError, match=sentence) as error:
        shard_checkpoint(source, folder / "store", quantizer="gobo", **options)
    assert "\n" not in str(error.value)
    assert not (folder / "store").exists()
    assert not list(folder.glob(".*"))
    return str(error.value)

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import (
    AutoModel,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertModel,
    MPNetModel,
    Olmo2Model,
    RobertaForSequenceClassification,
    ViTModel,
)
from transformers.utils import logging

from sti_hf import DeviceProfile, ShardStore
from sti_hf.config import COMPUTE_DTYPES
from sti_hf.errors import ConfigurationError
from sti_hf.integrations import device_profiles
from sti_hf.integrations.device_profiles import device_profile_path
from sti_hf.integrations.store_model import load_model_on
from sti_hf.profiling import reads
from sti_hf.profiling.device import STEPS, MeasuredDevice, fastest, measure_device
from sti_hf.runtime.gemm import GEMMS, ComputePath
from sti_hf.runtime.session import STISession
from sti_hf.shards.quantizers import get_quantizer
from sti_hf.shards.sharding import write_store
from tests.models import tiny_model


def store_of(model_class: Any, folder: Path, full: bool = True, **overrides: Any) -> ShardStore:
    model = tiny_model(model_class, **overrides)
    return write_store(model, folder, quantizer=get_quantizer("gobo"), quantizer_name="gobo", full=full)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(BertForSequenceClassification, tmp_path_factory.mktemp("stores") / "store")


def measure(store: ShardStore, **options: Any) -> DeviceProfile:
    return measure_device(store, lambda running: load_model_on(store, running), **options).profile


def check(profile: DeviceProfile, store: ShardStore) -> None:
    """What holds of every profile that was measured."""
    times = [
        profile.bytes_per_second,
        *([profile.row_seconds] if store.row_bytes else []),
        *np.array(profile.layer_seconds).ravel(),
        *profile.decompress_seconds.values(),
    ]
    outside = (*profile.before_seconds, *profile.after_seconds)
    assert all(0 < value < math.inf for value in times)
    assert all(0 <= value < math.inf for value in (profile.request_seconds, *outside, *profile.attention_seconds))
    assert any(outside)
    assert tuple(profile.decompress_seconds) == store.fidelities
    assert profile.widths[-1] == store.grid.slices
    assert set(profile.widths) <= set(store.grid.widths)
    assert profile.gemm in GEMMS
    layers = np.array(profile.layer_seconds)
    assert (np.diff(layers, axis=0) >= 0).all()
    assert (np.diff(layers, axis=1) >= 0).all()
    assert DeviceProfile.from_json(profile.to_json()) == profile


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_every_compute_dtype(store: ShardStore, dtype: str) -> None:
    steps: list[str] = []
    profile = measure(store, compute_dtype=dtype, progress=steps.append)
    check(profile, store)
    assert profile.compute_dtype in (COMPUTE_DTYPES[1:] if dtype == "auto" else (dtype,))
    assert profile.tokens == (1, 16, 64, 128, 512)
    assert profile.pairs == (64**2,), "70 positions are too few for attention to count"
    assert profile.widths == (1, 2, 4)
    assert len(steps) == STEPS


@pytest.mark.parametrize(
    ("model_class", "overrides", "tokens", "longer"),
    [
        (BertModel, {"max_position_embeddings": 8}, (1, 8, 16, 64), ()),
        (BertModel, {"num_hidden_layers": 1, "num_attention_heads": 1}, (1, 16, 64, 128, 512), ()),
        (BertModel, {"max_position_embeddings": 600}, (1, 16, 64, 128, 512), (128, 512)),
        (BertModel, {"max_position_embeddings": 200}, (1, 16, 64, 128, 512), (128, 200)),
        (RobertaForSequenceClassification, {"max_position_embeddings": 66}, (1, 16, 64, 128, 512), ()),
        (MPNetModel, {"max_position_embeddings": 65}, (1, 16, 63, 126, 504), ()),
        (BertForMultipleChoice, {}, (1, 16, 64, 128, 512), ()),
        (Olmo2Model, {}, (1, 16, 64, 128, 512), ()),
    ],
    ids=["8 positions", "one layer and head", "long", "less long", "RoBERTa", "MPNet", "multiple choice", "OLMo 2"],
)
def test_small_and_odd_stores(
    model_class: Any, overrides: dict[str, Any], tokens: tuple[int, ...], longer: tuple[int, ...], tmp_path: Path
) -> None:
    store = store_of(model_class, tmp_path / "store", **overrides)
    profile = measure(store, compute_dtype="float32")
    check(profile, store)
    assert profile.tokens == tokens
    assert profile.pairs[1:] == tuple(count**2 for count in longer)


def test_images_are_measured_by_their_number(tmp_path: Path) -> None:
    store = store_of(ViTModel, tmp_path / "store")
    profile = measure(store, compute_dtype="float32")
    check(profile, store)
    patches = profile.tokens[0]
    assert profile.tokens == (patches, 2 * patches, 4 * patches, 8 * patches)
    assert (profile.pairs, profile.attention_seconds) == ((patches**2,), (0.0,))
    assert profile.before_seconds[0] > 0, "the patches"


def test_a_store_without_full_weights(tmp_path: Path) -> None:
    store = store_of(BertModel, tmp_path / "store", full=False)
    profile = measure(store, compute_dtype="float32")
    check(profile, store)
    assert 32 not in profile.decompress_seconds


def test_a_head_over_the_vocabulary_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It is planned for by its bytes; measured as well, it would count twice.
    store = store_of(BertForMaskedLM, tmp_path / "store")
    decoded: list[int] = []
    monkeypatch.setattr(
        "sti_hf.runtime.modules.streamed_decoder.StreamedDecoder.forward", lambda self, x: decoded.append(1)
    )
    check(measure(store, compute_dtype="float32"), store)
    assert not decoded


def test_paced_reading_is_measured_as_such(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "SUSTAINED_SECONDS", 0.2)
    profile = measure(store, compute_dtype="float32", rate_limit=5e6)
    assert profile.bytes_per_second < 7e6


def test_sessions_are_closed(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[STISession] = []

    def load(running: STISession) -> Any:
        opened.append(running)
        return load_model_on(store, running)

    measure_device(store, load, compute_dtype="float32")
    assert opened
    for running in opened:
        with pytest.raises(RuntimeError, match="closed"):
            running.prefetch()


def test_the_fastest_path_in_its_best_pass() -> None:
    late, steady, hopeless = paths = [
        ComputePath("float32", "onednn"),
        ComputePath("float32", "default"),
        ComputePath("bfloat16", "default"),
    ]
    seconds = {late: [3.9, 3.0, 0.9], steady: [1.0, 1.0, 1.0], hopeless: [4.1, 0.1, 0.1]}
    asked: list[ComputePath] = []

    def measured(path: ComputePath) -> float:
        asked.append(path)
        return seconds[path].pop(0)

    assert fastest(paths, measured) == late
    assert asked == [*paths, late, steady, late, steady]


def test_a_dtype_that_this_machine_lacks(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ComputePath, "works", lambda path: path.dtype != "bfloat16")
    with pytest.raises(ConfigurationError, match="This machine cannot compute in bfloat16"):
        measure(store, compute_dtype="bfloat16")


def test_from_pretrained_profiles_on_first_use(
    store: ShardStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def as_if_free(*arguments: Any, **options: Any) -> MeasuredDevice:
        return replace(measure_device(*arguments, **options), busy=False)  # whatever else this machine does

    monkeypatch.setattr(device_profiles, "measure_device", as_if_free)
    monkeypatch.setenv("STI_HOME", str(tmp_path))
    bars = []
    logging.enable_progress_bar()
    for _ in range(2):
        AutoModel.from_pretrained(store.path, sti_config={"compute_dtype": "float32"}).sti.close()
        bars.append(capfd.readouterr().err)
    assert device_profile_path(store, "float32").exists()
    assert "Profiling this device" in bars[0]
    assert "Profiling this device" not in bars[1]
    loads = [bar.count("Loading weights") for bar in bars]
    assert loads == [0, 0], "the models that are loaded to be measured are not shown"
    assert logging.is_progress_bar_enabled()

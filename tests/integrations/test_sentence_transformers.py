"""sentence-transformers, the library itself, with models that run from stores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel, MPNetModel, NomicBertModel

from sti_hf import shard_checkpoint
from sti_hf.errors import UnsupportedUseError
from sti_hf.integrations import device_profiles
from sti_hf.profiling.device import MeasuredDevice
from tests.integrations.checkpoints import DEVICE, STOCK, checkpoint
from tests.tasks import sentences

TEXTS = [*sentences(9), "a cold model answers . " * 9, "a", ""]
"""Of many lengths, one of them longer than the model takes."""

PROMPTS = {"query": "a cold query : ", "document": "answers : "}
LONGEST = 24


def encoder(folder: Path, model_class: Any = BertModel, pooling: str = "mean") -> Path:
    """A tiny model as sentence-transformers saves it."""
    transformer = Transformer(str(checkpoint(model_class, folder / "checkpoint")), max_seq_length=LONGEST)
    torch.manual_seed(0)
    modules = [transformer, Pooling(32, pooling_mode=pooling), Dense(32, 12), Normalize()]
    SentenceTransformer(modules=modules, prompts=PROMPTS, default_prompt_name="document").save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def store(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_checkpoint(source, tmp_path_factory.mktemp("stores") / "store", quantizer="gobo").path


def loaded(source: Path | str, **options: Any) -> SentenceTransformer:
    model_kwargs = {"sti_config": STOCK, **options.pop("model_kwargs", {})}
    model = SentenceTransformer(str(source), device="cpu", model_kwargs=model_kwargs, **options)
    assert model.transformers_model.sti.plan.strategy == "preload"
    return model


def close(model: Any) -> None:
    model.transformers_model.sti.close()


def same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5


# The embeddings of the source.


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("model_class", [BertModel, MPNetModel, NomicBertModel])
def test_the_embeddings_are_the_sources(model_class: Any, pooling: str, tmp_path: Path) -> None:
    source = encoder(tmp_path, model_class, pooling)
    store = shard_checkpoint(source, tmp_path / "store", quantizer="gobo").path
    stock = SentenceTransformer(str(source), device="cpu")
    expected = stock.encode(TEXTS)
    assert np.abs(np.linalg.norm(expected, axis=1) - 1).max() < 1e-5
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    for one in (source, store):
        model = loaded(one)
        assert model.max_seq_length == stock.max_seq_length == LONGEST
        assert model.prompts == PROMPTS
        same(model.encode(TEXTS), expected)
        same(model.encode(TEXTS, batch_size=2), expected)
        same(model.encode_query(TEXTS), stock.encode_query(TEXTS))
        assert np.abs(model.encode_query(TEXTS) - expected).max() > 1e-2, "the prompt is read"
        close(model)


def test_a_module_whose_weights_are_a_pickle(source: Path, tmp_path: Path) -> None:
    """As the library saved them before safetensors."""
    folder = shutil.copytree(source, tmp_path / "model")
    stock = SentenceTransformer(str(source), device="cpu")
    (folder / "2_Dense" / "model.safetensors").unlink()
    stock[2].save(str(folder / "2_Dense"), safe_serialization=False)
    model = loaded(shard_checkpoint(folder, tmp_path / "store", quantizer="gobo").path)
    same(model.encode(TEXTS), stock.encode(TEXTS))
    assert not list((tmp_path / "store").rglob("*.bin"))
    close(model)


def test_a_store_needs_no_argument(source: Path, store: Path) -> None:
    model = SentenceTransformer(str(store), device="cpu")
    expected = SentenceTransformer(str(source), device="cpu").encode(TEXTS)
    found = model.encode(TEXTS)
    assert model.transformers_model.sti.store.path == store
    assert (found * expected).sum(axis=1).min() > 0.9
    close(model)


def test_every_length_has_its_plan(source: Path) -> None:
    model = loaded(source)
    tokens = set()
    for text in ("a", "a cold model answers . " * 3, "a cold model answers . " * 20):
        model.encode(text)
        tokens.add(model.transformers_model.sti.plan.workload.tokens)
    assert len(tokens) > 1
    close(model)


@pytest.mark.parametrize(
    "options",
    [
        {"convert_to_tensor": True},
        {"output_value": "token_embeddings"},
        {"truncate_dim": 4},
        {"precision": "int8"},
        {"prompt": "a "},
        {"normalize_embeddings": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_encode(source: Path, store: Path, options: dict[str, Any]) -> None:
    model = loaded(store)
    expected = SentenceTransformer(str(source), device="cpu").encode(TEXTS, **options)
    for one, other in zip(model.encode(TEXTS, **options), expected):
        one, other = (torch.as_tensor(value).float() for value in (one, other))
        assert one.shape == other.shape
        assert (one - other).abs().max() < (1.5 if "precision" in options else 1e-5)
    close(model)


def test_several_processes(source: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here: a spawned process finds the device profile in the cache
    model = loaded(store)
    expected = SentenceTransformer(str(source), device="cpu").encode(TEXTS)
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        same(model.encode(TEXTS, pool=pool, chunk_size=5, batch_size=2), expected)
    finally:
        model.stop_multi_process_pool(pool)
    same(model.encode(TEXTS), expected)
    close(model)


def test_similarity_and_search(source: Path, store: Path) -> None:
    model, stock = loaded(store), SentenceTransformer(str(source), device="cpu")
    found, expected = (one.similarity(one.encode(TEXTS), one.encode_query(TEXTS)) for one in (model, stock))
    assert (found - expected).abs().max() < 1e-5
    close(model)


# Where the model is, and what else the library loads.


@pytest.mark.parametrize("what", ["checkpoint", "store"])
def test_on_the_hub(source: Path, store: Path, tmp_path: Path, what: str) -> None:
    repository = tmp_path / "hub" / "models--someone--model"
    shutil.copytree(source if what == "checkpoint" else store, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    for branch in ("main", "next"):
        (repository / "refs" / branch).write_text("a" * 40)
    expected = SentenceTransformer(str(source), device="cpu").encode(TEXTS)
    for options in ({}, {"revision": "next"}, {"local_files_only": True, "trust_remote_code": True, "token": False}):
        model = loaded("someone/model", cache_folder=str(tmp_path / "hub"), **options)
        same(model.encode(TEXTS), expected)
        close(model)


def test_a_transformer_in_a_folder_of_its_own(source: Path, tmp_path: Path) -> None:
    """As the library saved models at first."""
    folder = shutil.copytree(source, tmp_path / "model")
    (folder / "0_Transformer").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        if path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(folder / "0_Transformer" / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    model = loaded(folder)
    same(model.encode(TEXTS), SentenceTransformer(str(source), device="cpu").encode(TEXTS))
    close(model)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_the_dtype_is_what_was_asked_for(store: Path, source: Path, dtype: Any) -> None:
    config = {**STOCK, "compute_dtype": "auto"}
    model = loaded(store, model_kwargs={"dtype": dtype, "sti_config": config})
    assert model.dtype == getattr(torch, dtype) if isinstance(dtype, str) else dtype
    expected = SentenceTransformer(str(source), device="cpu").encode(TEXTS)
    assert (model.encode(TEXTS).astype(np.float32) * expected).sum(axis=1).min() > 0.99
    close(model)


def test_a_cross_encoder(tmp_path: Path) -> None:
    source = checkpoint(BertForSequenceClassification, tmp_path / "source", num_labels=1)
    pairs = [(one, other) for one in TEXTS[:4] for other in TEXTS[:4]]
    expected = CrossEncoder(str(source), device="cpu").predict(pairs)
    store = shard_checkpoint(source, tmp_path / "store", quantizer="gobo").path
    for one in (source, store):
        model = CrossEncoder(str(one), device="cpu", model_kwargs={"sti_config": STOCK})
        same(model.predict(pairs, batch_size=3), expected)
        close(model)


def test_a_sparse_encoder(tmp_path: Path) -> None:
    source = checkpoint(BertForMaskedLM, tmp_path / "source")
    expected = SparseEncoder(str(source), device="cpu").encode(TEXTS, convert_to_sparse_tensor=False)
    store = shard_checkpoint(source, tmp_path / "store", quantizer="gobo").path
    for one in (source, store):
        model = SparseEncoder(str(one), device="cpu", model_kwargs={"sti_config": STOCK})
        found = model.encode(TEXTS, convert_to_sparse_tensor=False)
        assert (found - expected).abs().max() < 1e-4
        close(model)


def test_saving_is_refused_in_a_sentence(store: Path, tmp_path: Path) -> None:
    model = loaded(store)
    with pytest.raises(UnsupportedUseError) as error:
        model.save(str(tmp_path / "saved"))
    assert "\n" not in str(error.value)
    close(model)


def test_another_device_is_refused_in_a_sentence(store: Path) -> None:
    """The library takes an accelerator where there is one; the device meta stands for it here."""
    model = SentenceTransformer(str(store), device="meta", model_kwargs={"sti_config": STOCK})
    with pytest.raises(
        UnsupportedUseError, match=r"on the device meta, and a model runs .* on the CPU: .*device='cpu'"
    ):
        model.encode(TEXTS)
    close(model)


# A real encoder.

NOTES = [
    *("The plumber comes on Thursday at nine.", "Someone will repair the kitchen sink this week."),
    *("My daughter plays the violin in the school orchestra.", "The concert of the pupils was sold out."),
    *("Bread rises faster in a warm room.", "Leave the dough near the oven for two hours."),
    *("The train to Lyon was cancelled because of snow.", "Bad weather stopped all railway traffic."),
    *("Interest rates went up by half a percent.", "Borrowing money has become more expensive."),
    *("A cat slept on the warm engine hood.", "The mechanic found a kitten in the garage."),
]


@pytest.fixture(scope="module")
def minilm_encoder(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 with its pooling, which the package leaves out."""
    folder = tmp_path_factory.mktemp("minilm") / "model"
    shutil.copytree(minilm, folder, copy_function=lambda path, to: Path(to).symlink_to(path))
    (folder / "1_Pooling").mkdir()
    Pooling(384, pooling_mode="mean").save(str(folder / "1_Pooling"))
    return folder


@pytest.fixture(scope="module")
def minilm_store(minilm_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_checkpoint(minilm_encoder, tmp_path_factory.mktemp("minilm-store") / "store").path


@pytest.fixture
def _twelve_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = MeasuredDevice(replace(DEVICE, widths=(1, 12)), busy=False)
    monkeypatch.setattr(device_profiles, "measure_device", lambda *arguments, **options: measured)


def at(store: Path, fidelity: int) -> np.ndarray:
    model = loaded(store, model_kwargs={"sti_config": {**STOCK, "fidelity": fidelity}})
    embeddings = model.encode(NOTES, batch_size=5)
    close(model)
    return embeddings


@pytest.mark.usefixtures("_twelve_heads")
def test_a_real_encoder(minilm_encoder: Path, minilm_store: Path) -> None:
    expected = SentenceTransformer(str(minilm_encoder), device="cpu").encode(NOTES)
    assert (at(minilm_store, 32) * expected).sum(axis=1).min() > 0.9999
    pairs = np.triu_indices(len(NOTES), 1)
    found = at(minilm_store, 4)
    ranks = spearmanr((found @ found.T)[pairs], (expected @ expected.T)[pairs])
    assert ranks.statistic >= 0.95
    nearest = [(one @ one.T - 2 * np.eye(len(NOTES))).argmax(axis=1) for one in (found, expected)]
    assert (nearest[0] == nearest[1]).all()
    assert np.abs(found - expected).max() > 1e-3, "4 bits are not full fidelity"

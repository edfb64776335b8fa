"""What goes wrong with `from_pretrained` and its models: one clear sentence each, and never a wrong answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    BloomConfig,
    BloomModel,
    PreTrainedModel,
)

from sti_hf import ShardStore, StoreError, shard_checkpoint
from sti_hf.errors import UnsupportedUseError
from sti_hf.integrations.store_cache import cache_home
from sti_hf.native import StreamError
from sti_hf.shards.store import RESIDENT_FILE, TABLES_FILE
from tests.integrations.checkpoints import STOCK, checkpoint
from tests.models import TASK_HEADS, tiny_inputs, tiny_model

INPUTS = tiny_inputs(tiny_model(BertModel))


def test_an_unsupported_family(tmp_path: Path) -> None:
    BloomModel(BloomConfig(n_layer=1, n_head=2, hidden_size=8, vocab_size=20)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"type 'bloom' are not supported; supported are audio.*, bert, .*mpnet"
    ) as error:
        AutoModel.from_pretrained(tmp_path, sti_config=STOCK)
    assert all(name in str(error.value) for name in TASK_HEADS)
    assert not list((cache_home() / "stores").glob(f"*{tmp_path.name}*"))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"target_latency": 0}, "target_latency must be a positive number"),
        ({"target_latency": "-5ms"}, "target_latency must be a positive number"),
        ({"preload_budget": "lots"}, "preload_budget must be a number of bytes"),
        ({"latency": "200ms"}, "STIConfig has no field 'latency'; its fields are target_latency, "),
        ({"quantizer": "none"}, "no quantizer 'none'"),
    ],
)
def test_wrong_configurations(classifier: Path, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AutoModel.from_pretrained(classifier, sti_config=fields)
    with pytest.raises(ValueError, match=sentence):
        AutoModel.from_pretrained(classifier, quantization_config={"quant_method": "sti", **fields})


def test_an_sti_config_of_another_type(classifier: Path) -> None:
    with pytest.raises(TypeError, match="an STIConfig or a dictionary of its fields, not '200ms'"):
        AutoModel.from_pretrained(classifier, sti_config="200ms")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"no folder .*nowhere"):
        BertModel.from_pretrained(tmp_path / "nowhere", sti_config=STOCK)


def test_without_full_weights_32_bits_are_refused(classifier: Path, tmp_path: Path) -> None:
    store = shard_checkpoint(classifier, tmp_path / "store", quantizer="lloyd", full=False)
    with pytest.raises(ValueError, match="without full weights"):
        AutoModel.from_pretrained(store.path, sti_config=STOCK)
    AutoModel.from_pretrained(store.path).sti.close()


def test_training_and_devices(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier, sti_config=STOCK)
    model.train()
    with pytest.raises(RuntimeError, match=r"for inference only: call model\.eval\(\)"):
        model(**INPUTS)
    model.eval()
    loss = model(**INPUTS, labels=torch.tensor([0, 1, 1])).loss
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss.backward()
    assert not [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError), match=r"^[^\n]+$"):
            model.to("cuda")
        model(**INPUTS)
    model.sti.close()


def test_saving_is_refused(classifier: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier, sti_config=STOCK)
    with pytest.raises(UnsupportedUseError, match="weights are in its store: to save the model, copy"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    model.sti.close()


def test_a_closed_session(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier, sti_config=STOCK)
    model.sti.close()
    with pytest.raises(RuntimeError, match="session is closed; load the model again"):
        model(**INPUTS)


def test_a_store_without_sti_hf_says_what_is_missing(classifier_store: Path) -> None:
    stock = PreTrainedModel.from_pretrained.__func__.__wrapped__
    with pytest.raises(ValueError, match="This model is a store of sti_hf"):
        stock(BertModel, classifier_store)


@pytest.mark.parametrize("name", ["sti.json", "config.json", RESIDENT_FILE, TABLES_FILE, "shards"])
@pytest.mark.parametrize("harm", ["missing", "cut short"])
def test_a_store_that_is_not_whole(classifier_store: Path, tmp_path: Path, name: str, harm: str) -> None:
    broken = shutil.copytree(classifier_store, tmp_path / "broken")
    (file,) = broken.glob(f"{name}*")
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-2])
    if (name, harm) == ("sti.json", "missing"):  # then it is a checkpoint, and not a whole one
        with pytest.raises((ValueError, OSError)):
            AutoModel.from_pretrained(broken, sti_config=STOCK)
        return
    with pytest.raises((ValueError, OSError)) as error:
        AutoModel.from_pretrained(broken)
    assert file.name in str(error.value)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("offset", [0, 20, 200, -1])
def test_a_flipped_bit_in_the_resident_weights(classifier_store: Path, tmp_path: Path, offset: int) -> None:
    broken = shutil.copytree(classifier_store, tmp_path / "broken")
    flip(broken / RESIDENT_FILE, offset)
    with pytest.raises(StoreError, match=rf"{RESIDENT_FILE} is damaged.*sti verify"):
        BertForSequenceClassification.from_pretrained(broken, sti_config=STOCK)


def test_a_flipped_bit_in_a_shard(classifier_store: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(classifier_store, tmp_path / "broken")
    layout = ShardStore.open(classifier_store).layouts[2]
    flip(next(broken.glob("shards*")), int(layout.piece_offset[3, 1]) + 5)
    config = {"strategy": "std_pipeline", "fidelity": 4, "target_latency": 1.0}
    model = BertForSequenceClassification.from_pretrained(broken, sti_config=config)
    for _ in range(2):
        with pytest.raises(StreamError, match=r"checksum"):
            model(**INPUTS)
    model.sti.close()


def test_a_flipped_bit_in_an_embedding_row(classifier_store: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(classifier_store, tmp_path / "broken")
    table = ShardStore.open(classifier_store).stack.tables["word_embeddings"]
    word = int(INPUTS["input_ids"][0, 0])
    flip(broken / TABLES_FILE, table.offset + word * table.row_bytes)
    model = BertForSequenceClassification.from_pretrained(broken, sti_config=STOCK)
    with pytest.raises(StreamError, match=r"checksum"):
        model(**INPUTS)
    model.sti.close()


def test_a_store_of_a_newer_format(classifier_store: Path, tmp_path: Path) -> None:
    newer = shutil.copytree(classifier_store, tmp_path / "newer")
    content = json.loads((newer / "sti.json").read_text())
    (newer / "sti.json").write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(StoreError, match=r"format 99.*upgrade sti_hf"):
        AutoModel.from_pretrained(newer)


def test_a_latency_that_cannot_be_met(classifier: Path) -> None:
    config = {"target_latency": "1us"}
    with pytest.warns(UserWarning, match=r"meets the target latency"):
        model = AutoModel.from_pretrained(classifier, sti_config=config)
        assert not model.sti.plan.feasible
        model(**INPUTS)
    model.sti.close()
    with pytest.raises(ValueError, match="meets the target latency"):
        AutoModel.from_pretrained(classifier, sti_config={**config, "strict": True})


def test_an_importance_profile_that_is_not_there(tmp_path: Path) -> None:
    source = checkpoint(BertForSequenceClassification, tmp_path / "model")
    with pytest.raises(ValueError, match="no importance profile 'sst2'"):
        BertForSequenceClassification.from_pretrained(source, sti_config={"importance": "sst2", "quantizer": "gobo"})

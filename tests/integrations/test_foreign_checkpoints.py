"""Checkpoints that are something else than the weights of a supported model: one sentence each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sti_hf import shard_checkpoint
from tests.commands import Sti
from tests.integrations.checkpoints import edited, refused


@pytest.mark.parametrize("alone", [True, False])
def test_adapters_are_refused(classifier: Path, tmp_path: Path, alone: bool) -> None:
    source = shutil.copytree(classifier, tmp_path / "adapter")
    (source / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))
    if alone:
        (source / "config.json").unlink()
    refused(source, tmp_path, "holds an adapter .*merge_and_unload")


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "bitsandbytes", "load_in_8bit": True}, {"quant_method": "gptq"}, {"bits": 4}]
)
def test_a_quantized_checkpoint_is_refused(classifier: Path, tmp_path: Path, quantization: Any) -> None:
    source = edited(classifier, tmp_path / "quantized", quantization_config=quantization)
    refused(source, tmp_path, f"is quantized already .{quantization.get('quant_method', 'as its')}")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"hidden_act": "wobble"}, "activation 'wobble'"),
        ({"num_attention_heads": 0}, "sizes in the config.json of .* make no sense"),
        ({"num_hidden_layers": "three"}, "cannot read the config.json of .*num_hidden_layers"),
        ({"model_type": "no-such-type"}, "cannot read the config.json of .*no-such-type"),
        ({"dtype": "float9"}, "float9"),
    ],
)
def test_configurations_that_make_no_sense(
    classifier: Path, tmp_path: Path, fields: dict[str, Any], sentence: str, sti: Sti
) -> None:
    source = edited(classifier, tmp_path / "odd", **fields)
    result = sti("shard", source, tmp_path / "store")
    assert (result.status, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert result.err.startswith("sti: error: ")
    with pytest.raises(ValueError, match=sentence):
        shard_checkpoint(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()

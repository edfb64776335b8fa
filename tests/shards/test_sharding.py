"""Models that cannot be sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import BertModel, BertPreTrainedModel

from sti_hf.errors import SourceError, UnsupportedModelError
from sti_hf.shards.quantizers import get_quantizer
from sti_hf.shards.sharding import write_store
from tests.models import TASK_HEADS, tiny_config, tiny_model


class Rewired(BertPreTrainedModel):
    """A model whose layers are not where its family has them."""

    def __init__(self, config: Any, layers: int | None) -> None:
        super().__init__(config)
        self.inner = BertModel(config)
        if layers is not None:
            self.bert = self.inner
            self.bert.encoder.layer = self.bert.encoder.layer[:layers]


@pytest.mark.parametrize("layers", [None, 2])
def test_layers_that_are_elsewhere(tmp_path: Path, layers: int | None) -> None:
    model = Rewired(tiny_config("bert"), layers)
    with pytest.raises(UnsupportedModelError, match="Rewired cannot be sharded: it has not the 3 layers"):
        write_store(model, tmp_path / "store", quantizer=get_quantizer("gobo"), quantizer_name="gobo")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_several_dtypes(tmp_path: Path) -> None:
    model = tiny_model(TASK_HEADS["bert"][0])
    model.base_model.encoder.layer[1].bfloat16()
    with pytest.raises(SourceError, match="are bfloat16, float32: they must all be of one dtype"):
        write_store(model, tmp_path / "store", quantizer=get_quantizer("gobo"), quantizer_name="gobo")

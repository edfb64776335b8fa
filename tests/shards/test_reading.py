"""Layers read back from a store are the layers that were written."""

from __future__ import annotations

import pytest
import torch
from transformers import BertForSequenceClassification

from sti_hf.errors import StoreError
from sti_hf.model import get_architecture
from sti_hf.shards.partition import split_layer
from sti_hf.shards.quantizers import get_quantizer
from sti_hf.shards.reading import read_full_layer, read_quantized_layer
from tests.models import tiny_model
from tests.runtime.sessions import store_of


@pytest.mark.parametrize("quantizer", ["gobo", "lloyd"])
def test_a_read_layer_dequantizes_as_the_quantizer_does(tmp_path, quantizer):
    model = tiny_model(BertForSequenceClassification)
    architecture = get_architecture(model.config)
    grid = architecture.grid(model.config)
    order = [torch.randperm(grid.slices).tolist() for _ in range(grid.layers)]
    store = store_of(model, tmp_path / "store", quantizer, slice_order=order)
    for layer, module in enumerate(model.base_model.encoder.layer):
        weights = {matrix.name: module.get_submodule(matrix.module).weight for matrix in architecture.matrices}
        shards = split_layer(weights, architecture.matrices, grid, order[layer])
        quantized = get_quantizer(quantizer).quantize_layer(layer, shards, grid)
        read = read_quantized_layer(store, layer)
        assert torch.equal(read.codes, quantized.codes)
        for bits in range(2, 7):
            assert torch.equal(read.dequantize(bits), quantized.dequantize(bits))
        assert torch.equal(read_full_layer(store, layer), shards)


def test_damage_is_an_error_and_names_the_piece(tmp_path):
    store = store_of(tiny_model(BertForSequenceClassification), tmp_path / "store")
    with open(store.layer_path(1), "r+b") as file:
        file.seek(int(store.layouts[1].piece_offset[3, 1]))
        file.write(b"\xff\x00\xff\x00")
    read_quantized_layer(store, 0)
    with pytest.raises(StoreError, match=r"plane 3 of shard \(1, 1\)"):
        read_quantized_layer(store, 1)


def test_a_store_without_full_weights_has_none_to_read(tmp_path):
    store = store_of(tiny_model(BertForSequenceClassification), tmp_path / "store", full=False)
    with pytest.raises(StoreError, match="no full weights"):
        read_full_layer(store, 0)

"""What a plan computes, against stock Transformers models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import Gemma3TextModel

from sti_hf.model import get_architecture
from sti_hf.model.fused import split_fused
from sti_hf.runtime import blocks
from sti_hf.runtime.gemm import GEMMS, ComputePath
from sti_hf.runtime.modules.elastic_linear import ElasticLinear
from sti_hf.shards.layout import FULL
from tests.model.submodels import random_orders
from tests.models import FAMILIES, head_of, tiny_inputs, tiny_model
from tests.runtime.sessions import logits_of, plan_of, random_bits, running, stock_with_plan_weights, store_of


@pytest.mark.parametrize("model_type", FAMILIES)
def test_full_grid_at_full_fidelity_is_the_stock_model(model_type: str, tmp_path: Path) -> None:
    stock = tiny_model(head_of(model_type))
    store = store_of(stock, tmp_path / "store")
    inputs = tiny_inputs(stock)
    with torch.no_grad():
        expected = logits_of(stock(**inputs))
    model = running(store, plan_of(store, np.full((store.grid.layers, store.grid.slices), FULL), 0.3))
    for _ in range(2):
        assert torch.allclose(logits_of(model(**inputs)), expected, atol=1e-5)
    model.sti.close()


@pytest.mark.parametrize("keys", [1, 2])
def test_a_text_encoder_of_gemma_is_the_stock_model(keys: int, tmp_path: Path) -> None:
    stock = tiny_model(Gemma3TextModel, use_bidirectional_attention=True, num_key_value_heads=keys)
    store = store_of(stock, tmp_path / "store")
    model = running(store, plan_of(store, np.full((store.grid.layers, store.grid.slices), FULL), 0.3))
    inputs = tiny_inputs(stock)
    with torch.no_grad():
        assert torch.allclose(logits_of(model(**inputs)), logits_of(stock(**inputs)), atol=1e-5)
    model.sti.close()


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("quantizer", ["lloyd", "gobo"])
def test_streamed_weights_are_the_dequantized_ones(model_type: str, quantizer: str, tmp_path: Path) -> None:
    stock = tiny_model(head_of(model_type))
    store = store_of(stock, tmp_path / "store", quantizer)
    bits = random_bits(store, seed=1)
    inputs = tiny_inputs(stock)
    model = running(store, plan_of(store, bits, 0.3))
    with torch.no_grad():
        expected = logits_of(stock_with_plan_weights(stock, store, bits)(**inputs))
    assert torch.allclose(logits_of(model(**inputs)), expected, atol=1e-5)
    model.sti.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6), preload=st.sampled_from([0.0, 0.4, 1.0]), quantizer=st.sampled_from(["lloyd", "gobo"])
)
def test_any_plan_decompresses_to_the_dequantized_weights_bit_for_bit(
    seed: int, preload: float, quantizer: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stock = tiny_model(head_of("bert"))
    store = store_of(stock, tmp_path_factory.mktemp("any") / "store", quantizer)
    bits = random_bits(store, seed)
    model = running(store, plan_of(store, bits, preload, seed=seed))
    expected = stock_with_plan_weights(stock, store, bits)
    architecture = get_architecture(stock.config)
    seen = []

    def compare(linear: ElasticLinear, inputs: tuple, output: torch.Tensor) -> None:
        inference = linear._forwards.running()
        blocks = inference.blocks(linear.layer, linear.matrix)
        weight = torch.cat([inference.decompress(block).clone() for block in blocks])
        seen.append((linear, weight.t().clone() if linear.by_columns else weight.clone()))

    modules = model.base_model.get_submodule(architecture.layers)
    for layer in modules:
        for matrix in architecture.matrices:
            layer.get_submodule(matrix.module).register_forward_hook(compare)
    model(**tiny_inputs(stock))
    weights = {id(linear): weight for linear, weight in seen}
    for layer, twin in zip(modules, expected.base_model.get_submodule(architecture.layers)):
        for matrix in architecture.matrices:
            weight = weights[id(layer.get_submodule(matrix.module))]
            assert torch.equal(weight, twin.get_submodule(matrix.module).weight)
    model.sti.close()


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize(("layers", "slices"), [(2, 3), (1, 1), (3, 2)])
def test_submodel_is_the_stock_model_without_the_rest(
    model_type: str, layers: int, slices: int, tmp_path: Path
) -> None:
    stock = tiny_model(head_of(model_type))
    architecture = get_architecture(stock.config)
    grid = architecture.grid(stock.config)
    order = random_orders(stock, seed=7)
    slices = max(slices, grid.widths[0])
    store = store_of(stock, tmp_path / "store", slice_order=order)
    bits = np.zeros((grid.layers, grid.slices), dtype=np.int64)
    bits[:layers, :slices] = FULL
    inputs = tiny_inputs(stock)
    model = running(store, plan_of(store, bits))
    got = model(**inputs, output_hidden_states=True)

    # Heads and neurons that do not run are made silent: their columns of o and down are zero.
    split_fused(stock, architecture)
    modules = stock.base_model.get_submodule(architecture.layers)
    with torch.no_grad():
        for layer, module in enumerate(modules):
            for matrix in architecture.matrices:
                if matrix.by_columns:
                    weight = module.get_submodule(matrix.module).weight
                    rows = grid.matrix_rows[matrix.name]
                    for index in order[layer][slices:]:
                        weight[:, index * rows : (index + 1) * rows] = 0
        del modules[layers:]
        expected = stock(**inputs)
    assert torch.allclose(logits_of(got), logits_of(expected), atol=1e-5)
    assert len(got.hidden_states) == layers + 1
    model.sti.close()


@pytest.mark.parametrize("gemm", GEMMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_every_compute_path_gives_the_same_answer(gemm: str, dtype: str, tolerance: float, tmp_path: Path) -> None:
    path = ComputePath(dtype, gemm)
    if not path.works():
        pytest.skip(f"this processor does not multiply in {dtype} by {gemm}")
    stock = tiny_model(head_of("bert"))
    store = store_of(stock, tmp_path / "store")
    plan = plan_of(store, np.full((store.grid.layers, store.grid.slices), FULL))
    model = running(store, plan, path)
    inputs = tiny_inputs(stock)
    with torch.no_grad():
        expected = logits_of(stock(**inputs))
    assert (logits_of(model(**inputs)) - expected).abs().max() < tolerance
    model.sti.close()


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_matrices_larger_than_the_working_buffer_are_multiplied_block_by_block(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = tiny_model(head_of(model_type))
    store = store_of(stock, tmp_path / "store")
    inputs = tiny_inputs(stock)
    plan = plan_of(store, random_bits(store, 5), 0.2)
    whole = running(store, plan)
    expected = logits_of(whole(**inputs))
    monkeypatch.setattr(blocks, "WORKING_BYTES", 4 * 32 * 40)  # 40 rows: two slices of q, and of up and down
    model = running(store, plan)
    assert torch.allclose(logits_of(model(**inputs)), expected, atol=1e-5)
    assert model.sti.memory()["working"] == 4 * 32 * 32 < whole.sti.memory()["working"]
    for one in (model, whole):
        one.sti.close()


@pytest.mark.parametrize("strategy", ["load_exec", "std_pipeline", "sti"])
def test_strategies_compute_the_same(strategy: str, tmp_path: Path) -> None:
    stock = tiny_model(head_of("mpnet"))
    store = store_of(stock, tmp_path / "store")
    bits = np.full((store.grid.layers, store.grid.slices), 4)
    inputs = tiny_inputs(stock)
    reference = running(store, plan_of(store, bits, 1.0, strategy="preload"))
    model = running(store, plan_of(store, bits, strategy=strategy))
    assert torch.equal(logits_of(model(**inputs)), logits_of(reference(**inputs)))
    for one in (model, reference):
        one.sti.close()


@pytest.mark.parametrize("name", ["minilm-l6", "mpnet-base"])
def test_real_checkpoints(name: str, tmp_path: Path, real_checkpoint: dict[str, Path]) -> None:
    from transformers import AutoModel

    stock = AutoModel.from_pretrained(real_checkpoint[name]).eval()
    store = store_of(stock, tmp_path / "store")
    inputs = {"input_ids": torch.randint(10, 20000, (2, 40), generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        expected = stock(**inputs).last_hidden_state
    model = running(store, plan_of(store, np.full((store.grid.layers, store.grid.slices), FULL)))
    assert (model(**inputs).last_hidden_state - expected).abs().max() < 1e-5
    model.sti.use(plan_of(store, np.full((store.grid.layers, store.grid.slices), 6)))
    similarity = torch.nn.functional.cosine_similarity(model(**inputs).last_hidden_state, expected, dim=-1)
    assert similarity.mean() > 0.9
    model.sti.close()

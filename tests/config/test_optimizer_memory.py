"""Planned bytes of optimizer state: published figures, and what the optimizers allocate."""

from pathlib import Path

import pytest

from rlhf.config import optimizer_memory
from rlhf.config.memory_plan import memory_plan
from rlhf.config.model import LoraConfig
from rlhf.config.model_shapes import PUBLISHED, ModelShape, shape_from_config
from rlhf.config.optimizer import (
    AdaBeliefConfig,
    AdamW8bitConfig,
    AdamWConfig,
    AuONConfig,
    FrugalConfig,
    MuonConfig,
)
from rlhf.config.optimizer_memory import residual_bytes, state_bytes, trained_tensors

SMOLLM2_135M = PUBLISHED["HuggingFaceTB/SmolLM2-135M-Instruct"]
DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "optimizers.md"
LLAMA_8B = ModelShape(4096, 32, 32, 8, 128, 14336, 128256, is_tied=False)
SMALL = {
    "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "intermediate_size": 768, "vocab_size": 512, "tie_word_embeddings": True,
}  # fmt: skip


def test_the_two_shapes_have_the_sizes_that_the_figures_are_for():
    for shape, linear, rest in ((SMOLLM2_135M, 106_168_320, 28_346_688), (LLAMA_8B, 6_979_321_856, 1_050_939_392)):
        tensors = trained_tensors(shape)
        large = sum(tensor.count * tensor.numel for tensor in tensors if tensor.is_large_matrix)
        every = sum(tensor.count * tensor.numel for tensor in tensors)
        assert (large, every - large, every) == (linear, rest, shape.parameters)
    assert sum(tensor.count for tensor in trained_tensors(SMOLLM2_135M)) == 272


# bytes a parameter; FRUGAL's are those of the paper's memory column, 8 (rest + density x linear)
@pytest.mark.parametrize(
    ("optimizer", "smollm2", "llama"),
    [
        (AdamWConfig(), 8.000, 8.000),
        (AdaBeliefConfig(), 8.000, 8.000),
        (AdaBeliefConfig(amsgrad=True), 12.000, 12.000),
        (FrugalConfig(density=1.0, state_dtype="float32"), 8.000, 8.000),
        (FrugalConfig(density=0.5, state_dtype="float32"), 4.843, 4.523),
        (FrugalConfig(density=0.25, state_dtype="float32"), 3.264, 2.785),
        (FrugalConfig(density=0.1, state_dtype="float32"), 2.317, 1.742),
        (FrugalConfig(density=0.0, state_dtype="float32"), 1.686, 1.047),
        (FrugalConfig(density=0.25, state_dtype="bfloat16"), 1.632, 1.393),
        (FrugalConfig(density=0.25, state_dtype="8bit"), 0.829, 0.707),
        (AuONConfig(), 4.843, 4.523),
        (AuONConfig(state_dtype="bfloat16"), 2.421, 2.262),
        (MuonConfig(), 4.843, 4.523),
    ],
)
def test_bytes_a_parameter(optimizer, smollm2, llama):
    for shape, expected in ((SMOLLM2_135M, smollm2), (LLAMA_8B, llama)):
        assert state_bytes(optimizer, trained_tensors(shape)) / shape.parameters == pytest.approx(expected, rel=2e-3)


def settings():
    yield AdamWConfig()
    yield MuonConfig()
    for dtype in ("float32", "bfloat16", "8bit"):
        yield AdaBeliefConfig(state_dtype=dtype, amsgrad=True)
        yield AuONConfig(state_dtype=dtype)
        for selector in ("auto", "chunk", "columns", "rows", "randk", "svd", "random"):
            yield FrugalConfig(state_dtype=dtype, selector=selector)
    for density in (0.0, 0.1, 1.0):
        yield FrugalConfig(density=density, selector="columns", state_full_rule="lion")


def name(optimizer):
    settings = optimizer.model_dump()
    return "-".join(str(settings[key]) for key in ("type", "selector", "density", "state_dtype") if key in settings)


@pytest.mark.parametrize("optimizer", settings(), ids=name)
def test_the_plan_is_what_an_optimizer_allocates(optimizer):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlhf.training.optimizers import build_optimizer

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SMALL))
    real = build_optimizer(optimizer, model, dict(model.named_parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    real.step()
    # MatrixMomentum's state is that of its two parts
    states = [state for part in getattr(real, "parts", [real]) for state in part.state.values()]
    kept = sum(value.nbytes for state in states for value in state.values() if value.ndim and value.dtype.itemsize)
    planned = state_bytes(optimizer, trained_tensors(shape_from_config(SMALL)))
    # whole tensors meet a budget to within one
    is_budget = isinstance(optimizer, FrugalConfig) and optimizer.selector == "auto"
    assert planned == pytest.approx(kept, rel=1e-3, abs=8 * 256 * 768 if is_budget else 0)


def test_constants_are_those_of_the_optimizers():
    import inspect

    from rlhf.optim import buffers
    from rlhf.optim.parameter_groups import parameter_roles

    assert (optimizer_memory.BLOCK, optimizer_memory.SMALLEST_QUANTIZED) == (buffers.BLOCK, buffers.SMALLEST_QUANTIZED)
    defaults = inspect.signature(parameter_roles).parameters
    assert defaults["min_split_numel"].default == optimizer_memory.MIN_SPLIT_NUMEL
    assert defaults["min_split_dim"].default == optimizer_memory.MIN_SPLIT_DIM


def test_adapters_are_planned_by_their_own_shapes():
    tensors = trained_tensors(SMOLLM2_135M, LoraConfig(rank=8, target_modules=["q_proj", "down_proj"]))
    assert sum(t.count * t.numel for t in tensors) == SMOLLM2_135M.lora_parameters(8, ["q_proj", "down_proj"])
    assert not any(tensor.is_large_matrix for tensor in tensors)
    assert state_bytes(FrugalConfig(density=0.0, state_dtype="float32"), tensors) == 8 * sum(
        t.count * t.numel for t in tensors
    )
    everywhere = trained_tensors(SMOLLM2_135M, LoraConfig(rank=128))
    assert sum(t.count * t.numel for t in everywhere) == SMOLLM2_135M.lora_parameters(128, "all-linear")
    assert all(tensor.is_large_matrix for tensor in everywhere if tensor.numel >= 65_536)


def test_the_split_of_a_model_is_that_of_its_roles():
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlhf.optim.parameter_groups import parameter_roles

    for family in ("llama", "qwen2", "qwen3"):
        values = {**SMALL, "model_type": family, "num_key_value_heads": 1}
        config = AutoConfig.for_model(**values)
        model = AutoModelForCausalLM.from_config(config)
        roles = parameter_roles(model, optimizer="frugal")
        split = sum(p.numel() for name, p in model.named_parameters() if roles[name] == "split")
        tensors = trained_tensors(shape_from_config(config.to_dict()))
        assert sum(t.count * t.numel for t in tensors if t.is_large_matrix) == split
        assert sum(t.count * t.numel for t in tensors) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("precision", "beside", "gradients", "micro_batch"),
    [("native", 4, 4, 2), ("split16", 2, 2, 0), ("split8", 1, 2, 0), ("sr", 0, 2, 0)],
)
def test_the_plan_knows_what_stands_beside_a_bfloat16_weight(parse, precision, beside, gradients, micro_batch):
    flags = ["--optimizer.type", "frugal", "--optimizer.param_precision", precision, "--engine.type", "transformers"]
    config = parse(*flags)
    found = {item.name: item.bytes for item in memory_plan(config, SMOLLM2_135M).items}
    p = SMOLLM2_135M.parameters
    masters = found.get("float32 masters", 0) + found.get("lost bits of the weights", 0)
    assert (masters, found["gradients"]) == (beside * p, gradients * p) and residual_bytes(config.optimizer) == beside
    assert found.get("gradients of a micro-batch", 0) == micro_batch * p
    assert found["optimizer state"] == pytest.approx(1.632 * p, rel=1e-3)


def documented_rows():
    """(what the documentation calls an optimizer, its configuration) of the memory table."""
    yield "adamw", AdamWConfig()
    yield "adamw_8bit", AdamW8bitConfig()
    yield "adabelief", AdaBeliefConfig()
    for dtype in ("float32", "bfloat16", "8bit"):
        yield f"frugal, density 0.25, {dtype}", FrugalConfig(density=0.25, state_dtype=dtype)
    yield "frugal, density 0, float32", FrugalConfig(density=0.0, state_dtype="float32")
    for dtype in ("float32", "bfloat16"):
        yield f"auon, {dtype}", AuONConfig(state_dtype=dtype)
    yield "muon", MuonConfig()


@pytest.mark.parametrize(("name", "optimizer"), documented_rows(), ids=[name for name, _ in documented_rows()])
def test_the_documented_memory_table(name, optimizer):
    figures = [
        f"{state_bytes(optimizer, trained_tensors(shape)) / shape.parameters:.3f}" for shape in (SMOLLM2_135M, LLAMA_8B)
    ]
    assert f"| {name} | {figures[0]} | {figures[1]} |" in DOCUMENTATION.read_text(encoding="utf-8")

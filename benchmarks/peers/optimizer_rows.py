"""What benchmarks/optimizers.py measures: sets of parameters, optimizers with their settings, and the targets."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from rlhf.config.optimizer import AdaBeliefConfig, AdamW8bitConfig, AdamWConfig, AuONConfig, FrugalConfig, MuonConfig
from rlhf.config.optimizer_memory import TrainedTensor, state_bytes
from rlhf.optim import AdaBelief, AuON, Frugal, build_param_groups
from rlhf.optim.muon import MatrixMomentum

LR = 1e-6
WEIGHT_DECAY = 0.01


def smollm2_135m() -> nn.Module:
    """All 272 tensors of SmolLM2-135M, 134,515,008 parameters."""
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    ))  # fmt: skip


def llama_8b_layers() -> nn.Module:
    """Two layers of Llama-3.1-8B's shape, 436,224,000 parameters: larger than any cache."""
    config = LlamaConfig(
        vocab_size=8, hidden_size=4096, intermediate_size=14336, num_hidden_layers=2, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    return LlamaModel(config).layers


def smoke() -> nn.Module:
    """A model for tests of the benchmark itself: figures of it mean nothing."""
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=768, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=True,
    ))  # fmt: skip


PARAMETER_SETS: dict[str, Callable[[], nn.Module]] = {
    "smollm2-135m": smollm2_135m, "llama-8b-layers": llama_8b_layers, "smoke": smoke
}  # fmt: skip


def tensors_of(model: nn.Module) -> list[TrainedTensor]:
    """The model's tensors as the memory plan counts them."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [
        TrainedTensor(1, *(p.shape if p.ndim == 2 else (1, p.numel())), p.ndim == 2 and id(p) not in embeddings)
        for p in model.parameters()
    ]


@dataclass(frozen=True)
class Row:
    """One line of the table. `config` is what the memory plan is asked about; `is_whole_tensors`: its state meets the
    plan to within one tensor."""

    name: str
    build: Callable[[nn.Module], Optimizer]
    config: Any
    is_whole_tensors: bool = False


def rows() -> list[Row]:
    """All rows that can run here: libraries for 8-bit AdamW only where they are installed."""
    return [*_torch_rows(), *_libraries(), *_adabelief_rows(), *_frugal_rows(), *_auon_rows()]


def _torch_rows() -> Iterable[Row]:
    for name, flags in (("loop", {"foreach": False}), ("foreach", {"foreach": True}), ("fused", {"fused": True})):
        yield Row(f"torch AdamW {name}", lambda model, flags=flags: adamw(model, **flags), AdamWConfig())

    def muon(model: nn.Module) -> Optimizer:
        return MatrixMomentum(_groups(model, "muon"), LR, weight_decay=WEIGHT_DECAY)

    yield Row("torch Muon", muon, MuonConfig())


def _libraries() -> Iterable[Row]:
    if importlib.util.find_spec("torchao") is not None:
        from torchao.optim import AdamW8bit

        yield Row("torchao AdamW8bit", lambda m: AdamW8bit(m.parameters(), LR, weight_decay=WEIGHT_DECAY),
                  AdamW8bitConfig())  # fmt: skip
    if importlib.util.find_spec("bitsandbytes") is not None and torch.cuda.is_available():
        from bitsandbytes.optim import AdamW8bit as BitsandbytesAdamW8bit

        yield Row("bitsandbytes AdamW8bit",
                  lambda m: BitsandbytesAdamW8bit(m.parameters(), LR, weight_decay=WEIGHT_DECAY),
                  AdamW8bitConfig())  # fmt: skip


def _adabelief_rows() -> Iterable[Row]:
    def row(name: str, **settings: Any) -> Row:
        def build(model: nn.Module) -> Optimizer:
            return AdaBelief(_groups(model, "adabelief"), LR, weight_decay=WEIGHT_DECAY, **settings)

        return Row(f"AdaBelief {name}", build, AdaBeliefConfig(state_dtype=settings.get("state_dtype", "float32")))

    for impl in ("foreach", "compiled"):
        yield row(impl, impl=impl)
        yield row(f"{impl}, in a run", impl=impl, skip_nonfinite=False)
        yield row(f"{impl} bounded, in a run", impl=impl, skip_nonfinite=False, eps=1e-19, max_update_rms=1.0)
    for state_dtype in ("bfloat16", "8bit"):
        yield row(f"compiled {state_dtype}", impl="compiled", state_dtype=state_dtype)


def _frugal_rows() -> Iterable[Row]:
    def row(selector: str, density: float, state_dtype: str, impl: str, checks: bool = True) -> Row:
        gates = {} if checks else {"skip_nonfinite": False}

        def build(model: nn.Module) -> Optimizer:
            return Frugal(
                _groups(model, "frugal"), LR, weight_decay=WEIGHT_DECAY, density=density, selector=selector,
                state_dtype=state_dtype, impl=impl, **gates,
            )  # fmt: skip

        name = f"Frugal {selector} {density:g} {state_dtype} {impl}" + ("" if checks else ", in a run")
        config = FrugalConfig(density=density, selector=selector, state_dtype=state_dtype)
        return Row(name, build, config, is_whole_tensors=selector == "block_budget" and 0 < density < 1)

    for selector in ("block_budget", "chunk", "columns"):
        for impl in ("foreach", "compiled"):
            for density in (0.0, 0.1, 0.25, 1.0):
                yield row(selector, density, "float32", impl)
            for state_dtype in ("bfloat16", "8bit"):
                yield row(selector, 0.25, state_dtype, impl)
            yield row(selector, 0.25, "float32", impl, checks=False)
    for density in (0.1, 0.25):
        yield row("svd", density, "float32", "foreach")


def _auon_rows() -> Iterable[Row]:
    def row(name: str, **settings: Any) -> Row:
        def build(model: nn.Module) -> Optimizer:
            return AuON(_groups(model, "auon"), LR, weight_decay=WEIGHT_DECAY, **settings)

        return Row(f"AuON {name}", build, AuONConfig(state_dtype=settings.get("state_dtype", "float32")))

    for impl in ("foreach", "compiled"):
        yield row(f"paper {impl}", impl=impl)
        yield row(f"paper {impl}, in a run", impl=impl, skip_nonfinite=False)
    yield row("paper bfloat16", state_dtype="bfloat16")
    yield row("repository", mode="repository")
    yield row("hybrid, 1 Newton-Schulz step", ns_steps=1)


def adamw(model: nn.Module, **flags: bool) -> Optimizer:
    return AdamW(model.parameters(), LR, weight_decay=WEIGHT_DECAY, **flags)


def _groups(model: nn.Module, method: Any) -> list[dict[str, Any]]:
    return build_param_groups(model, optimizer=method, weight_decay=WEIGHT_DECAY)


def predicted_bytes(row: Row, model: nn.Module) -> int:
    """Bytes of state that the memory plan counts for the row."""
    return state_bytes(row.config, tensors_of(model))


def state_bytes_of(optimizer: Optimizer) -> int:
    """Bytes of all state tensors but counters."""
    states = [state for part in getattr(optimizer, "parts", [optimizer]) for state in part.state.values()]
    values = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return sum(part.nbytes for value in values for part in _stored(value) if part.ndim)


def _stored(value: Tensor) -> Iterable[Tensor]:
    """The tensors that a quantised tensor consists of; a plain one is its own."""
    if not hasattr(value, "__tensor_flatten__"):
        return [value]
    names, _ = value.__tensor_flatten__()
    return [getattr(value, name) for name in names]


@dataclass(frozen=True)
class Target:
    """`row`'s `figure` (a key of its result) is to be at most `limit` on these sets of parameters."""

    row: str
    figure: str
    limit: float
    parameters: tuple[str, ...] = ("smollm2-135m", "llama-8b-layers")


TARGETS = (
    Target("AdaBelief compiled", "vs_fused", 1.1),
    Target("AdaBelief foreach", "vs_foreach", 1.5),
    *(Target(f"Frugal {selector} 0.25 float32 foreach", "vs_foreach", 0.6) for selector in ("block_budget", "chunk")),
    *(Target(f"Frugal {selector} 0.25 float32 compiled", "vs_fused", 0.7) for selector in ("block_budget", "chunk")),
    Target("Frugal columns 0.25 float32 foreach", "vs_foreach", 1.1),
    Target("AuON paper foreach", "vs_foreach", 0.9),
    *(
        Target(f"Frugal {selector} 0.25 {state_dtype} foreach", "state_per_parameter", limit, ("smollm2-135m",))
        for selector in ("block_budget", "chunk", "columns")
        for state_dtype, limit in (("bfloat16", 1.65), ("8bit", 0.85))
    ),
)  # fmt: skip


def verdicts(results: Mapping[str, Mapping[str, Any]], parameters: str) -> list[str]:
    """A line for each target whose row was measured; rows as in a run are told beside those that look for NaN."""
    lines = []
    for target in TARGETS:
        if target.row not in results or parameters not in target.parameters:
            continue
        found = results[target.row][target.figure]
        line = f"{'met' if found <= target.limit else '**missed**'}: {target.row}, "
        line += f"{target.figure.replace('_', ' ')} {found:.2f} (at most {target.limit:g})"
        in_a_run = results.get(f"{target.row}, in a run")
        if in_a_run and target.figure != "state_per_parameter":
            line += f"; in a run {in_a_run[target.figure]:.2f}"
        lines.append(line)
    return lines

"""Bytes of optimizer state, by arithmetic on the sizes of the trained tensors."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rlhf.config.model import LoraConfig
from rlhf.config.model_shapes import ModelShape
from rlhf.config.optimizer import (
    AdaBeliefConfig,
    AdamW8bitConfig,
    AuONConfig,
    FrugalConfig,
    MuonConfig,
    OptimizerConfig,
)

BLOCK, SMALLEST_QUANTIZED = 256, 4096
"""8-bit state has a float32 scale for each block; smaller tensors have float32 state (as rlhf/optim/buffers.py)."""
MIN_SPLIT_NUMEL, MIN_SPLIT_DIM = 65_536, 64
"""Smaller matrices are treated as vectors are (as rlhf/optim/parameter_groups.py)."""
MASTER_BYTES = {"native": 4, "split16": 2, "split8": 1, "sr": 0}
"""What stands beside a bfloat16 weight to be trained: a float32 copy, its lost bits, or nothing."""


@dataclass(frozen=True)
class TrainedTensor:
    """`count` trained tensors of one shape; a vector has one row. `is_linear`: the weight of a linear layer that is no
    head."""

    count: int
    rows: int
    columns: int
    is_linear: bool

    @property
    def numel(self) -> int:
        """Elements of one of them."""
        return self.rows * self.columns

    @property
    def is_large_matrix(self) -> bool:
        """Whether FRUGAL splits it, and AuON and Muon treat it as a matrix."""
        return self.is_linear and self.numel >= MIN_SPLIT_NUMEL and min(self.rows, self.columns) >= MIN_SPLIT_DIM


def trained_tensors(shape: ModelShape, lora: LoraConfig | None = None) -> list[TrainedTensor]:
    """All tensors of a model, or of its adapters."""
    layers = shape.layers
    if lora is not None:
        targets = [lora.target_modules] if lora.target_modules == "all-linear" else lora.target_modules
        chosen = [size for name, size in shape.linears.items() if {name, "all-linear"} & set(targets)]
        pairs = [((lora.rank, inputs), (outputs, lora.rank)) for inputs, outputs in chosen]
        return [TrainedTensor(layers, *matrix, True) for pair in pairs for matrix in pair]
    linears = [TrainedTensor(layers, outputs, inputs, True) for inputs, outputs in shape.linears.values()]
    vectors = [TrainedTensor(2 * layers + 1, 1, shape.hidden, False)]
    if shape.has_qkv_bias:
        vectors += [TrainedTensor(layers, 1, width, False) for width in (shape.query_width, *[shape.kv_width] * 2)]
    if shape.has_qk_norm:
        vectors.append(TrainedTensor(2 * layers, 1, shape.head_dim, False))
    tables = TrainedTensor(1 if shape.is_tied else 2, shape.vocabulary, shape.hidden, False)
    return [*linears, *vectors, tables]


def state_bytes(
    optimizer: OptimizerConfig, tensors: Iterable[TrainedTensor],
    on_rank: Callable[[TrainedTensor], float] | None = None,
) -> int:  # fmt: skip
    """Bytes of moments, bases and column indices; step counters are left out. `on_rank`: the elements of one such
    tensor that this rank has, if not all; bases and indices every rank has whole.

    With FRUGAL's block_budget it is the budget, which the chosen tensors meet to within one tensor; with block it
    depends on which tensors are chosen, and this is the mean.
    """
    total = 0.0
    for tensor in tensors:
        moments, beside = _of_tensor(optimizer, tensor)
        share = 1.0 if on_rank is None else on_rank(tensor) / tensor.numel
        total += tensor.count * (moments * share + beside)
    return math.ceil(total)


def residual_bytes(optimizer: OptimizerConfig) -> int:
    """Bytes that each bfloat16 weight has beside it: of its float32 master copy, or of its lost bits."""
    return MASTER_BYTES[getattr(optimizer, "param_precision", "native")]


def _of_tensor(optimizer: OptimizerConfig, tensor: TrainedTensor) -> tuple[float, float]:
    """Bytes of (moments, what is kept beside them)."""
    match optimizer:
        case FrugalConfig():
            return _of_frugal(optimizer, tensor)
        case AuONConfig():
            moments = 1 if tensor.is_large_matrix else 2
            return moments * _stored(tensor.numel, optimizer.state_dtype), 0
        case AdaBeliefConfig():
            return (2 + optimizer.amsgrad) * _stored(tensor.numel, optimizer.state_dtype), 0
        case MuonConfig():
            return (4 if tensor.is_large_matrix else 8) * tensor.numel, 0
        case AdamW8bitConfig():
            return 2 * _stored(tensor.numel, "8bit"), 0
    return 8 * tensor.numel, 0


def _of_frugal(optimizer: FrugalConfig, tensor: TrainedTensor) -> tuple[float, float]:
    moments = 1 if optimizer.state_full_rule == "lion" else 2
    if not tensor.is_large_matrix:
        return moments * _stored(tensor.numel, optimizer.state_dtype), 0
    density, rows, columns = optimizer.density, tensor.rows, tensor.columns
    beside = 0
    match optimizer.selector:
        case "columns" | "rows":
            lines, others = (columns, rows) if optimizer.selector == "columns" else (rows, columns)
            count = _count(lines, density)
            # the indices of columns are kept
            chosen, beside = others * count, 4 * count if optimizer.selector == "columns" and density < 1 else 0
        case "svd" | "random":
            short, long = sorted((rows, columns))
            rank = _count(short, density)
            chosen, beside = long * rank, 4 * short * rank
        case _:
            chosen = density * tensor.numel
    return moments * _stored(chosen, optimizer.state_dtype, tensor.numel), beside


def _stored(numel: float, state_dtype: str, tensor_numel: float | None = None) -> float:
    """Bytes of one moment of `numel` elements (of a tensor that may have more)."""
    if state_dtype == "8bit":
        is_small = (numel if tensor_numel is None else tensor_numel) < SMALLEST_QUANTIZED
        return 4 * numel if is_small else numel * (1 + 4 / BLOCK)
    return numel * {"float32": 4, "bfloat16": 2}[state_dtype]


def _count(total: int, density: float) -> int:
    """Rows, columns or directions that a density stands for: halves up, at least one above 0."""
    return min(max(1, math.floor(density * total + 0.5)), total) if density > 0 else 0

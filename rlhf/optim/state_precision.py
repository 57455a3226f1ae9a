"""One tensor of optimizer state, read and written whole: `rlhf.optim.buffers` for code without layouts or buckets, as
where a rule is tried out by itself.

`state` holds tensors and numbers only, so that `torch.load(weights_only=True)` reads it. State `exp_avg` is the entry
`exp_avg`; in 8 bits also `exp_avg_absmax`, a scale for each block; in 8 bits and bfloat16 also `exp_avg_signed`, since
the codes, and what may be rounded to nearest, depend on it.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rlhf.optim.buffers import NEAREST, Buffer, allocate_state, state_buffer

StateFormat = Literal["float32", "bfloat16", "8bit"]
"""8bit is for tensors of at least `buffers.SMALLEST_QUANTIZED` elements; smaller ones stay float32."""


def allocate(
    state: dict[str, Any], name: str, numel: int, format: StateFormat, device: torch.device | str, signed: bool
) -> None:
    """Zeros for state `name`, flat; what `state` had under that name is replaced. Second moments are not `signed`.

    Raises ValueError for another format.
    """
    if format not in get_args(StateFormat):
        raise ValueError(f"state {name!r} cannot be {format!r}: choose one of {', '.join(get_args(StateFormat))}")
    state.pop(f"{name}_signed", None)
    allocate_state(state, name, numel, format, torch.float32, torch.device(device))
    if state[name].dtype != torch.float32:
        state[f"{name}_signed"] = signed


def read(state: dict[str, Any], name: str) -> Tensor:
    """Float32 values: the kept tensor itself where that is float32, else a new one.

    Raises ValueError for state that `allocate` did not make.
    """
    kept = state[name]
    return kept if kept.dtype == torch.float32 else _buffer(state, name).read(0, kept.numel())


def write(state: dict[str, Any], name: str, value_N: Tensor, bits_N: Tensor | None) -> None:
    """Keep float32 values; `bits_N` int32 rounds bfloat16 and 8 bits by chance, None to nearest.

    Raises ValueError for other shapes, for state that `allocate` did not make, and for second moments rounded to
    nearest: an average of squares moves by a thousandth at a time, less than half of the way to the next code, and
    would stand still far below its value. A bfloat16 first moment with b1 = 0.9 ends within 2 % of it.
    """
    kept = state[name]
    if value_N.shape != kept.shape:
        raise ValueError(f"state {name!r} has shape {tuple(kept.shape)}, and the values {tuple(value_N.shape)}")
    if kept.dtype == torch.float32:
        kept.copy_(value_N)
        return
    buffer = _buffer(state, name)
    if bits_N is None:
        if not state[f"{name}_signed"]:
            raise ValueError(
                f"state {name!r} is a second moment in {kept.dtype}, and would stand still if rounded to nearest: pass "
                "random bits (rlhf.optim.hashing.random_bits_range) or keep it in float32"
            )
        bits_N = torch.full_like(kept, NEAREST, dtype=torch.int32)
    buffer.write(0, kept.numel(), value_N, lambda: bits_N)


def _buffer(state: dict[str, Any], name: str) -> Buffer:
    kept = state[name]
    if f"{name}_signed" not in state:
        raise ValueError(
            f"state {name!r} is {kept.dtype}, and without {name}_signed nobody knows its codes: make it with "
            "state_precision.allocate"
        )
    state_dtype = "8bit" if kept.dtype == torch.uint8 else "bfloat16"
    return state_buffer(state, name, state_dtype, state[f"{name}_signed"])

"""How values are kept between steps: float32, bfloat16 with stochastic rounding, a bfloat16 weight with its lost bits
beside it, or 8 bits a value with a scale for each block. All are read as float32 (float64 where the parameter is),
computed on, and written back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlhf.optim.layout import local_flat, shaped_like
from rlhf.optim.quantization import (
    BLOCK,
    dequantize_signed,
    dequantize_unsigned,
    quantize_signed,
    quantize_unsigned,
)
from rlhf.optim.rounding import join8, join16, round_stochastically, split8, split16

Bits = Callable[[], Tensor]
"""Gives int32 random bits for the elements that are written."""
NEAREST = -0x7FFF8000
"""Bits with which the nearest value is taken: halves of both the 16 and the 24 bits that are looked at."""
SMALLEST_QUANTIZED = 4096
"""Tensors with fewer elements stay float32: their state is small, and a block would mix unlike values."""


class Buffer(Protocol):
    """A flat run of values on this rank."""

    def read(self, start: int, stop: int) -> Tensor:
        """The values in compute precision; a view where they are kept so."""

    def write(self, start: int, stop: int, value: Tensor, bits: Bits) -> None:
        """Keep `value`; nothing to do where `read` gave a view that was changed in place."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Kept in compute precision."""

    values: Tensor

    def read(self, start: int, stop: int) -> Tensor:
        return self.values if start == 0 and stop == self.values.numel() else self.values[start:stop]

    def write(self, start: int, stop: int, value: Tensor, bits: Bits) -> None:
        kept = self.values[start:stop]
        if kept.data_ptr() != value.data_ptr():
            kept.copy_(value)


@dataclass(frozen=True, slots=True)
class Rounded:
    """Kept in a lower precision, rounded to the nearest value."""

    values: Tensor

    def read(self, start: int, stop: int) -> Tensor:
        return self.values[start:stop].float()

    def write(self, start: int, stop: int, value: Tensor, bits: Bits) -> None:
        self.values[start:stop].copy_(value)


@dataclass(frozen=True, slots=True)
class StochasticallyRounded:
    """Kept in bfloat16, rounded up or down with the probability that makes the mean right."""

    values: Tensor

    def read(self, start: int, stop: int) -> Tensor:
        return self.values[start:stop].float()

    def write(self, start: int, stop: int, value: Tensor, bits: Bits) -> None:
        self.values[start:stop].copy_(round_stochastically(value, bits()))


@dataclass(frozen=True, slots=True)
class Split:
    """A bfloat16 weight and the bits of the float32 weight that it lacks: 16 (exact) or the upper 8 of them."""

    values: Tensor
    residual: Tensor

    def read(self, start: int, stop: int) -> Tensor:
        join = join16 if self.residual.dtype == torch.int16 else join8
        return join(self.values[start:stop], self.residual[start:stop])

    def write(self, start: int, stop: int, value: Tensor, bits: Bits) -> None:
        split = split16 if self.residual.dtype == torch.int16 else split8
        high, low = split(value)
        self.values[start:stop].copy_(high)
        self.residual[start:stop].copy_(low)


@dataclass(frozen=True, slots=True)
class Quantized:
    """8 bits a value and one float32 scale for each block of 256. `write` takes whole blocks: `start` and `stop` are
    multiples of the block, or the end."""

    codes: Tensor
    absmax: Tensor
    signed: bool

    def read(self, start: int, stop: int) -> Tensor:
        dequantize = dequantize_signed if self.signed else dequantize_unsigned
        first = start // BLOCK * BLOCK
        blocks = dequantize(self.codes[first:stop], self.absmax[start // BLOCK : -(-stop // BLOCK)])
        return blocks[start - first :]

    def write(self, start: int, stop: int, value: Tensor, bits: Bits) -> None:
        quantize = quantize_signed if self.signed else quantize_unsigned
        codes, absmax = quantize(value, bits())
        self.codes[start:stop].copy_(codes)
        self.absmax[start // BLOCK : -(-stop // BLOCK)].copy_(absmax)


def state_buffer(state: dict, name: str, state_dtype: str, signed: bool) -> Buffer:
    """The buffer of state `name`, as `allocate_state` made it."""
    values = local_flat(state[name])
    if values.dtype == torch.uint8:
        return Quantized(values, local_flat(state[f"{name}_absmax"]), signed)
    return StochasticallyRounded(values) if values.dtype == torch.bfloat16 else Plain(values)


def allocate_state(
    state: dict, name: str, numel: int, state_dtype: str, compute_dtype: torch.dtype, device: torch.device,
    smallest: int = SMALLEST_QUANTIZED,
) -> None:  # fmt: skip
    """Zeros for state `name` of `numel` elements: one entry of `state`, or two where it is kept in 8 bits.

    Float64 is for reference: state of float64 parameters is float64.
    """
    state.pop(f"{name}_absmax", None)
    if state_dtype == "8bit" and numel >= smallest and compute_dtype == torch.float32:
        # zero under either code: the scale is zero
        state[name] = torch.zeros(numel, dtype=torch.uint8, device=device)
        state[f"{name}_absmax"] = torch.zeros(-(-numel // BLOCK), device=device)
        return
    dtype = torch.bfloat16 if state_dtype == "bfloat16" and compute_dtype == torch.float32 else compute_dtype
    state[name] = torch.zeros(numel, dtype=dtype, device=device)


def parameter_buffer(parameter: Tensor, state: dict, precision: str, values: Tensor | None = None) -> Buffer:
    """How the parameter's local values (`values`, where they are at hand) are read and written; makes the residual of a
    split weight on first use.

    Raises ValueError where the precision does not fit the parameter's dtype.
    """
    values = local_flat(parameter) if values is None else values
    if values.dtype in (torch.float32, torch.float64):
        if precision != "native":
            raise ValueError(f"param_precision {precision!r} is for bfloat16, got {values.dtype}: use 'native'")
        return Plain(values)
    if precision == "native":
        return Rounded(values)
    if values.dtype != torch.bfloat16:
        raise ValueError(f"param_precision {precision!r} is for bfloat16 parameters, got {values.dtype}")
    if precision == "sr":
        return StochasticallyRounded(values)
    if "param_residual" not in state:
        dtype = torch.int16 if precision == "split16" else torch.int8
        residual = torch.zeros(values.numel(), dtype=dtype, device=values.device)
        state["param_residual"] = shaped_like(residual, parameter)
    return Split(values, local_flat(state["param_residual"]))

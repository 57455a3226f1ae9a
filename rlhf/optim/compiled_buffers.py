"""Reading and writing of stored values by compiled kernels: bfloat16 with stochastic rounding, and 8 bits a value.

Bits of a float are looked at as int32 between kernels, never within one: there a view costs nothing, while a kernel for
a CPU copies element by element. Results have the bits of rlhf.optim.buffers.
"""

import functools
import types
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf.optim.buffers import Buffer, Quantized, StochasticallyRounded
from rlhf.optim.direct_call import standalone
from rlhf.optim.hashing import stretch_bits
from rlhf.optim.noise import Noise
from rlhf.optim.quantization import BLOCK, DROPPED, block_offsets
from rlhf.optim.rounding import LARGEST_BFLOAT16, UPPER

Chances = Callable[[str, int, int], Tensor]
"""Gives random bits by field, first element and number; `Noise`, where they are a stretch of a tensor."""
MAGNITUDE = 0x7FFFFFFF
LARGEST = int(torch.tensor(LARGEST_BFLOAT16).view(torch.int32))


def read_buffer(buffer: Buffer, start: int, stop: int) -> Tensor:
    """`buffer.read`, for the choice between this and `read_compiled`."""
    return buffer.read(start, stop)


def write_buffer(
    buffer: Buffer, start: int, stop: int, value_N: Tensor, noise: Chances, field: str, offset: int
) -> None:
    """`buffer.write` with bits of `noise` for elements from `offset` on."""
    buffer.write(start, stop, value_N, lambda: noise(field, offset, stop - start))


def read_compiled(buffer: Buffer, start: int, stop: int) -> Tensor:
    """As `buffer.read`."""
    if not isinstance(buffer, Quantized) or start % BLOCK or (stop - start) % BLOCK:
        return buffer.read(start, stop)
    codes_N = standalone(buffer.codes[start:stop])
    offset_K1 = block_offsets(buffer.absmax[start // BLOCK : stop // BLOCK], buffer.signed)
    raw_N = torch.empty(stop - start, dtype=torch.int32, device=codes_N.device)
    value_N = torch.empty(stop - start, dtype=torch.float32, device=codes_N.device)
    _kernel(_decode, buffer.signed)(raw_N, codes_N, offset_K1.view(torch.int32))
    _kernel(_unshift, buffer.signed)(value_N, raw_N.view(torch.float32), codes_N, offset_K1)
    return value_N


def write_compiled(
    buffer: Buffer, start: int, stop: int, value_N: Tensor, noise: Chances, field: str, offset: int
) -> None:
    """As `write_buffer`."""
    key_4 = noise.stretch(field, offset, stop - start) if isinstance(noise, Noise) else None
    is_blocks = isinstance(buffer, Quantized) and start % BLOCK == 0 and (stop - start) % BLOCK == 0
    if key_4 is None or not (is_blocks or isinstance(buffer, StochasticallyRounded)):
        write_buffer(buffer, start, stop, value_N, noise, field, offset)
        return
    value_N = standalone(value_N)
    if isinstance(buffer, StochasticallyRounded):
        rounded_N = torch.empty_like(value_N)
        _kernel(_round, False)(rounded_N.view(torch.int32), value_N.view(torch.int32), key_4)
        buffer.values[start:stop] = rounded_N
        return
    shifted_N, absmax_K = torch.empty_like(value_N), standalone(buffer.absmax[start // BLOCK : stop // BLOCK])
    _kernel(_largest, False)(absmax_K, value_N)
    offset_K1 = block_offsets(absmax_K, buffer.signed)
    _kernel(_shift, False)(shifted_N, value_N, offset_K1)
    codes_N, raw_N = standalone(buffer.codes[start:stop]), shifted_N.view(torch.int32)
    _kernel(_encode, buffer.signed)(codes_N, raw_N, value_N, offset_K1.view(torch.int32), key_4)


def _round(rounded_N: Tensor, raw_N: Tensor, key_4: Tensor, is_signed: bool) -> None:
    """Bits of floats that are bfloat16 numbers, or are to be rounded to the nearest; see
    `rounding.round_stochastically`."""
    by_chance_N = (raw_N + (stretch_bits(key_4, raw_N) & 0xFFFF)) & UPPER
    rounded_N.copy_(torch.where((raw_N & MAGNITUDE) < LARGEST, by_chance_N, raw_N))


def _largest(absmax_K: Tensor, value_N: Tensor, is_signed: bool) -> None:
    absmax_K.copy_(value_N.view(-1, BLOCK).abs().amax(1))


def _shift(shifted_N: Tensor, value_N: Tensor, offset_K1: Tensor, is_signed: bool) -> None:
    shifted_N.copy_((value_N.view(-1, BLOCK).abs() + offset_K1).view(-1))


def _encode(
    codes_N: Tensor, raw_N: Tensor, value_N: Tensor, raw_offset_K1: Tensor, key_4: Tensor, is_signed: bool
) -> None:
    """See `quantization._quantize`."""
    chance_N = (stretch_bits(key_4, raw_N) >> 32 - DROPPED) & (1 << DROPPED) - 1
    code_KB = ((raw_N.view(-1, BLOCK) - raw_offset_K1) + chance_N.view(-1, BLOCK)) >> DROPPED
    code_N = code_KB.clamp(0, 127 if is_signed else 255).view(-1)
    if is_signed:
        code_N = torch.where(value_N < 0, code_N + 128, code_N)
    else:
        code_N = torch.where((code_N == 0) & (value_N != 0), 1, code_N)
    codes_N.copy_(code_N)


def _decode(raw_N: Tensor, codes_N: Tensor, raw_offset_K1: Tensor, is_signed: bool) -> None:
    """See `quantization._dequantize`."""
    code_KB = codes_N.to(torch.int32).view(-1, BLOCK)
    code_KB = code_KB & 127 if is_signed else code_KB
    raw_N.copy_(((code_KB << DROPPED) + raw_offset_K1).view(-1))


def _unshift(value_N: Tensor, shifted_N: Tensor, codes_N: Tensor, offset_K1: Tensor, is_signed: bool) -> None:
    magnitude_N = (shifted_N.view(-1, BLOCK) - offset_K1).view(-1)
    value_N.copy_(magnitude_N * (1 - 2 * (codes_N.to(torch.int32) >> 7)) if is_signed else magnitude_N)


@functools.cache
def _kernel(function: Callable[..., None], is_signed: bool) -> Callable[..., None]:
    own = types.FunctionType(function.__code__.replace(), globals(), function.__name__, (is_signed,))
    return torch.compile(own, fullgraph=True, dynamic=True)

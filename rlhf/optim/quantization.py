"""Optimizer state in 8 bits a value: codes are floats with 3 mantissa bits, and each block of 256 has a float32 scale.

S is the power of two at or above the block's largest magnitude. The code of x counts the floats with 3 mantissa bits
between c and c + |x|: steps are even near zero and proportional beyond c.

| code     | values         | c       | steps of x                                         |
|----------|----------------|---------|----------------------------------------------------|
| signed   | sign, 0 to 127 | S 2^-15 | S 2^-18 up to c, then 1/16 to 1/8 of c + the value |
| unsigned | 0 to 255       | S 2^-31 | S 2^-34 up to c, then 1/16 to 1/8 of c + the value |

A second moment spans twice the octaves of its gradient, so both codes end near the same gradient. An unsigned value
that is not zero never has code 0, and is never read as less than half of it: no step of Adam grows by more than sqrt(2)
times, where a second moment that is read as zero would make it explode. A first moment near zero may become zero.

Rounding between neighbours is by chance: the mean is right, and an average that moves by less than a step at a time
still moves, where rounding to nearest would hold it. Beyond one addition of floats, codes come from additions and
shifts of integers, so that all devices agree. The power of two, rather than the largest value itself, keeps the steps
in place while the largest value changes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 256
SIGNED_OCTAVES, UNSIGNED_OCTAVES = 15, 31
"""From S down to c."""
EXPONENT, DROPPED = 23, 20
"""Where float32 has its exponent, and how many bits below a code are rounded away."""
CHUNK_CPU, CHUNK_GPU = 1 << 18, 1 << 21
"""Elements worked on at once: in a CPU's cache, or with less than 64 MiB of scratch."""


def quantize_signed(value_N: Tensor, bits_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(codes uint8, largest magnitude of each block float32) of flat float values.

    `bits_N` int32, of which the upper 20 are used, rounds by chance; None rounds to the nearest code. A block with a
    NaN or an infinity is read as not finite throughout.
    """
    return _quantize(value_N, bits_N, is_signed=True)


def dequantize_signed(codes_N: Tensor, absmax_K: Tensor) -> Tensor:
    """float32 values, shape of `codes_N`."""
    return _dequantize(codes_N, absmax_K, is_signed=True)


def quantize_unsigned(value_N: Tensor, bits_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `quantize_signed` for values that are not negative (a sign is dropped: a check would wait for the device)."""
    return _quantize(value_N, bits_N, is_signed=False)


def dequantize_unsigned(codes_N: Tensor, absmax_K: Tensor) -> Tensor:
    """float32 values, shape of `codes_N`."""
    return _dequantize(codes_N, absmax_K, is_signed=False)


def _quantize(value_N: Tensor, bits_N: Tensor | None, is_signed: bool) -> tuple[Tensor, Tensor]:
    numel, device = value_N.numel(), value_N.device
    codes_N = torch.empty(numel, dtype=torch.uint8, device=device)
    absmax_K = torch.empty(-(-numel // BLOCK), dtype=torch.float32, device=device)
    for start, stop, width in _chunks(numel, device):
        value_KB = value_N[start:stop].reshape(-1, width).float()
        magnitude_KB = value_KB.abs()
        largest_K = absmax_K[start // BLOCK : -(-stop // BLOCK)]
        largest_K.copy_(magnitude_KB.amax(1))
        offset_K1 = block_offsets(largest_K, is_signed)
        code_KB = magnitude_KB.add_(offset_K1).view(torch.int32).sub_(offset_K1.view(torch.int32))
        if bits_N is None:
            code_KB += 1 << DROPPED - 1
        else:
            code_KB += (bits_N[start:stop].reshape(-1, width) >> 32 - DROPPED) & (1 << DROPPED) - 1
        code_KB >>= DROPPED
        # only a block that is not finite leaves the range
        code_KB.clamp_(0, 127 if is_signed else 255)
        if is_signed:
            code_KB |= (value_KB < 0).to(torch.int32) << 7
        else:
            code_KB += (code_KB == 0) & (value_KB != 0)
        codes_N[start:stop] = code_KB.view(-1)
    return codes_N, absmax_K


def _dequantize(codes_N: Tensor, absmax_K: Tensor, is_signed: bool) -> Tensor:
    numel, device = codes_N.numel(), codes_N.device
    value_N = torch.empty(numel, dtype=torch.float32, device=device)
    for start, stop, width in _chunks(numel, device):
        code_KB = codes_N[start:stop].reshape(-1, width).to(torch.int32)
        offset_K1 = block_offsets(absmax_K[start // BLOCK : -(-stop // BLOCK)], is_signed)
        magnitude_KB = code_KB & 127 if is_signed else code_KB
        magnitude_KB = (magnitude_KB << DROPPED).add_(offset_K1.view(torch.int32)).view(torch.float32).sub_(offset_K1)
        if is_signed:
            # the sign of the code is the sign bit of the float
            magnitude_KB.view(torch.int32).bitwise_or_((code_KB & 128) << 24)
        value_N[start:stop] = magnitude_KB.view(-1)
    return value_N


def block_offsets(absmax_K: Tensor, is_signed: bool) -> Tensor:
    """c of each block, [K, 1]; as `absmax_K` where that is not finite."""
    octaves = SIGNED_OCTAVES if is_signed else UNSIGNED_OCTAVES
    power_K = (absmax_K.view(torch.int32) + (1 << EXPONENT) - 1) >> EXPONENT
    # the smallest step, c / 8, is a normal number: devices differ in what they do with others
    offset_K = ((power_K - octaves).clamp_(min=4) << EXPONENT).view(torch.float32)
    return torch.where(absmax_K.isfinite(), offset_K, absmax_K)[:, None]


def _chunks(numel: int, device: torch.device) -> Iterator[tuple[int, int, int]]:
    """(start, stop, width): ranges that are rows of `width` values, a block each; the last block may be short."""
    chunk, whole = CHUNK_CPU if device.type == "cpu" else CHUNK_GPU, numel - numel % BLOCK
    for start in range(0, whole, chunk):
        yield start, min(start + chunk, whole), BLOCK
    if whole < numel:
        yield whole, numel, numel - whole

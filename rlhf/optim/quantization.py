"""Optimizer state in 8 bits a value: codes spaced like the logarithm, one float32 scale for each block of 256 values.

First moments have a sign and 127 magnitudes, second moments 255; code 0 is exactly zero. Magnitudes are geometric: with
ratio q from the block's largest value down, q^126 = 2^-20 for signed and q^254 = 2^-40 for unsigned codes, so that
neighbours differ by 11.6 % and 11.5 %. A value that is smaller than the last magnitude but not zero takes the last: a
second moment that is not zero is never kept as zero, which would make a step explode. Rounding between neighbours is by
chance, so that an average that moves by less than a code's width at a time still moves.
"""

import torch
from torch import Tensor

BLOCK = 256
SIGNED_CODES, SIGNED_OCTAVES = 127, 20
UNSIGNED_CODES, UNSIGNED_OCTAVES = 255, 40
CHUNK = 1 << 22
"""Elements quantised at once: bounds the scratch."""


def quantize_signed(value_N: Tensor, bits_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(codes uint8, largest magnitude of each block float32); `bits_N` int32 rounds by chance, None to the nearest."""
    magnitudes_N, absmax_K = _quantize(value_N.abs(), bits_N, SIGNED_CODES, SIGNED_OCTAVES)
    return torch.where(value_N < 0, magnitudes_N + 128, magnitudes_N).to(torch.uint8), absmax_K


def dequantize_signed(codes_N: Tensor, absmax_K: Tensor) -> Tensor:
    """float32 values, shape of `codes_N`."""
    value_N = _dequantize(codes_N & 127, absmax_K, SIGNED_CODES, SIGNED_OCTAVES)
    return torch.where(codes_N >= 128, -value_N, value_N)


def quantize_unsigned(value_N: Tensor, bits_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `quantize_signed` for values that are not negative."""
    codes_N, absmax_K = _quantize(value_N, bits_N, UNSIGNED_CODES, UNSIGNED_OCTAVES)
    return codes_N.to(torch.uint8), absmax_K


def dequantize_unsigned(codes_N: Tensor, absmax_K: Tensor) -> Tensor:
    """float32 values, shape of `codes_N`."""
    return _dequantize(codes_N, absmax_K, UNSIGNED_CODES, UNSIGNED_OCTAVES)


def _quantize(value_N: Tensor, bits_N: Tensor | None, codes: int, octaves: int) -> tuple[Tensor, Tensor]:
    numel = value_N.numel()
    blocks = -(-numel // BLOCK)
    out_N = torch.empty(numel, dtype=torch.uint8, device=value_N.device)
    absmax_K = torch.empty(blocks, dtype=torch.float32, device=value_N.device)
    for start in range(0, numel, CHUNK):
        stop = min(start + CHUNK, numel)
        padded = torch.nn.functional.pad(value_N[start:stop], (0, -(stop - start) % BLOCK)).view(-1, BLOCK)
        largest_K1 = padded.amax(1, keepdim=True)
        absmax_K[start // BLOCK : -(-stop // BLOCK)] = largest_K1[:, 0]
        relative = padded / largest_K1.clamp_min(torch.finfo(torch.float32).tiny)
        # position 0 is the largest value, codes - 1 the smallest magnitude
        place = (-relative.log2() * ((codes - 1) / octaves)).clamp(0, codes - 1).view(-1)[: stop - start]
        lower = place.floor()
        if bits_N is None:
            up = place - lower >= 0.5
        else:
            # linear in the value, not in its logarithm: the mean is to be right
            ratio = 2.0 ** (-octaves / (codes - 1))
            above, value = ratio**lower, relative.view(-1)[: stop - start]
            share = ((above - value) / (above * (1 - ratio))).clamp(0, 1)
            uniform = ((bits_N[start:stop] >> 8) & 0xFFFFFF).float() / (1 << 24)
            up = uniform < share
        step = (lower + up).clamp_max(codes - 1)
        code = torch.where(padded.view(-1)[: stop - start] == 0, torch.zeros_like(step), codes - step)
        out_N[start:stop] = code.to(torch.uint8)
    return out_N, absmax_K


def _dequantize(codes_N: Tensor, absmax_K: Tensor, codes: int, octaves: int) -> Tensor:
    table = torch.arange(codes + 1, dtype=torch.float64)
    table = 2.0 ** ((table - codes) * (octaves / (codes - 1)))
    table[0] = 0
    table = table.float().to(codes_N.device)
    numel = codes_N.numel()
    value = torch.nn.functional.pad(table[codes_N.int()], (0, -numel % BLOCK)).view(-1, BLOCK) * absmax_K[:, None]
    return value.view(-1)[:numel]

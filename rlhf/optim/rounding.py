"""Rounding float32 to bfloat16 without losing what is rounded away: by chance, or with the lost bits kept beside it."""

import torch
from torch import Tensor


def round_stochastically(value_N: Tensor, bits_N: Tensor) -> Tensor:
    """bfloat16 neighbours of float32 values, the upper one with the probability that makes the mean right.

    `bits_N`: int32, of which the low 16 are used. Infinities and NaN stay; a value between the largest bfloat16 and
    infinity may become infinite, as it does in rounding to nearest.
    """
    raw_N = value_N.view(torch.int32)
    rounded_N = (raw_N + (bits_N & 0xFFFF)) & -0x10000
    # adding to the bits of an infinity would make it NaN
    kept_N = torch.where(value_N.isfinite(), rounded_N, raw_N)
    return torch.where(value_N.isnan(), value_N, kept_N.view(torch.float32)).bfloat16()


def split16(value_N: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 tensor as bfloat16 (the nearest, ties away from zero) and the int16 that `join16` needs to restore it.
    """
    raw_N = value_N.view(torch.int32)
    # a carry out of NaN's bits would make it a number
    high_N = torch.where(value_N.isfinite(), (raw_N + 0x8000) & -0x10000, raw_N & -0x10000)
    low_N = raw_N - high_N
    # infinities have no low bits, and those of a NaN are dropped: what is left fits int16
    low_N = torch.where(value_N.isfinite(), low_N, 0)
    high_N = torch.where(value_N.isnan(), torch.full_like(raw_N, 0x7FC00000), high_N)
    return high_N.view(torch.float32).bfloat16(), low_N.to(torch.int16)


def join16(high_N: Tensor, low_N: Tensor) -> Tensor:
    """The float32 tensor that `split16` took apart, bit for bit (a NaN as the canonical NaN)."""
    return (high_N.float().view(torch.int32) + low_N.to(torch.int32)).view(torch.float32)


def split8(value_N: Tensor) -> tuple[Tensor, Tensor]:
    """As `split16` with the upper 8 of the 16 lost bits: a relative error of at most 2^-16."""
    high_N, low_N = split16(value_N)
    return high_N, (low_N >> 8).to(torch.int8)


def join8(high_N: Tensor, low_N: Tensor) -> Tensor:
    """The middle of the values that have these parts; an infinity or NaN as it is."""
    raw_N = high_N.float().view(torch.int32) + low_N.to(torch.int32) * 256 + 128
    return torch.where(high_N.isfinite(), raw_N.view(torch.float32), high_N.float())

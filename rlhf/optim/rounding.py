"""Rounding float32 to bfloat16 without losing what is rounded away: by chance, or with the lost bits kept beside it.

All is done on the bits as int32: adding to them moves a value away from zero whatever its sign, and bfloat16 is their
upper half.
"""

import torch
from torch import Tensor

LARGEST_BFLOAT16 = torch.finfo(torch.bfloat16).max
INFINITY, QUIET, UPPER = 0x7F800000, 0x00400000, -0x10000
"""Bits of infinity, the bit that makes a NaN quiet, and the upper half."""


def round_stochastically(value_N: Tensor, bits_N: Tensor) -> Tensor:
    """bfloat16 neighbours of float32 values, the upper one with the probability that makes the mean right.

    `bits_N`: int32, of which the low 16 are used. Infinities and NaN stay. Finite values beyond the largest bfloat16
    are rounded to nearest: none becomes infinite that rounding to nearest would keep finite.
    """
    rounded_N = (bits_N & 0xFFFF).add_(value_N.view(torch.int32)).bitwise_and_(UPPER).view(torch.float32)
    # false for NaN too, whose bits plus noise can be any number
    return torch.where(value_N.abs() < LARGEST_BFLOAT16, rounded_N, value_N).bfloat16()


def split16(value_N: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 tensor as bfloat16 (the nearest, ties away from zero) and the int16 that `join16` needs to restore it.

    A finite value next to infinity has an infinite upper part, as in rounding to nearest, and is restored. A NaN stays
    a NaN in both, quiet, with its sign and the upper half of its bits.
    """
    raw_N = value_N.view(torch.int32)
    high_N = (raw_N + 0x8000).bitwise_and_(UPPER)
    low_N = (raw_N - high_N).to(torch.int16)
    # rounding could carry a NaN's bits into those of a number, and its lower half has no place
    is_nan_N = value_N.isnan()
    high_N = torch.where(is_nan_N, raw_N & UPPER | QUIET, high_N)
    return _upper_half(high_N), low_N.masked_fill(is_nan_N, 0)


def join16(high_N: Tensor, low_N: Tensor) -> Tensor:
    """The float32 tensor that `split16` took apart, bit for bit."""
    return _as_upper_half(high_N).add_(low_N).view(torch.float32)


def split8(value_N: Tensor) -> tuple[Tensor, Tensor]:
    """As `split16` with the upper 8 of the 16 lost bits, int8: a relative error of at most 2^-16 in `join8`."""
    high_N, low_N = split16(value_N)
    return high_N, (low_N >> 8).to(torch.int8)


def join8(high_N: Tensor, low_N: Tensor) -> Tensor:
    """The middle of the float32 values that have these parts; an infinity or NaN as it is.

    The error is at most 128 units in the last place of float32: 2^-16 of a normal value, and 2^-142 below those, so
    that zero is read as 2^-142.
    """
    raw_N = _as_upper_half(high_N)
    middle_N = torch.add(raw_N, low_N, alpha=256).add_(128)
    # an infinite upper part with lost bits is that of a finite value next to infinity
    is_finite_N = ((raw_N & INFINITY) != INFINITY) | (low_N < 0)
    return torch.where(is_finite_N, middle_N, raw_N).view(torch.float32)


def _upper_half(raw_N: Tensor) -> Tensor:
    """bfloat16 that has the upper halves of int32 bits; a conversion of floats would not keep those of NaN."""
    return (raw_N >> 16).to(torch.int16).view(torch.bfloat16)


def _as_upper_half(high_N: Tensor) -> Tensor:
    return high_N.view(torch.int16).to(torch.int32).bitwise_left_shift_(16)

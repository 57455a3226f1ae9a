"""Randomness as a function of what it is for: (seed, step, tensor, the element's place in the whole tensor).

Replicas then round alike, results do not depend on how a tensor is sharded, and a resumed run needs no generator state.
"""

import hashlib
import re

import torch
from torch import Tensor

WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|base_model\.model)\.")
"""Parts of a parameter's name that only say how the model is wrapped."""
MASK = (1 << 64) - 1


def tensor_key(name: str) -> int:
    """A fixed 64-bit number for a parameter's name, whatever wraps the model."""
    return int.from_bytes(hashlib.blake2b(WRAPPERS.sub("", name).encode(), digest_size=8).digest(), "big")


def mix(*values: int) -> int:
    """64 bits that depend on all bits of the values and on their order: SplitMix64's finaliser (Steele et al. 2014)
    after each."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state ^ (value & MASK)) + 0x9E3779B97F4A7C15 & MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
        state ^= state >> 31
    return state


def random_bits(seed: int, step: int, key: int, index_N: Tensor) -> Tensor:
    """32 random bits for each element, int32: a function of its global index and the three numbers.

    `index_N`: int64. Two rounds of a 32-bit mixer (lowbias32 of C. Wellons' hash-prospector) over the two halves of the
    index, keyed by 64 bits.
    """
    state = mix(seed, step, key)
    low, high = state & 0xFFFFFFFF, state >> 32
    x_N = _mix_32((index_N & 0xFFFFFFFF) ^ low)
    x_N = _mix_32(x_N ^ (index_N >> 32) ^ high)
    # as int32 the upper half of the range is negative
    return (((x_N ^ 0x80000000) & 0xFFFFFFFF) - 0x80000000).to(torch.int32)


def random_bits_range(seed: int, step: int, key: int, start: int, numel: int, device: torch.device | str) -> Tensor:
    """`random_bits` of the elements `start` to `start` + `numel`."""
    return random_bits(seed, step, key, torch.arange(start, start + numel, device=device))


def generator(seed: int, epoch: int, key: int) -> torch.Generator:
    """A generator on the CPU for one choice; torch's global one is left alone."""
    return torch.Generator().manual_seed(mix(seed, epoch, key) >> 1)


def _mix_32(x_N: Tensor) -> Tensor:
    """A bijection of 32-bit numbers, held in int64."""
    x_N = x_N ^ (x_N >> 16)
    x_N = (x_N * 0x7FEB352D) & 0xFFFFFFFF
    x_N = x_N ^ (x_N >> 15)
    # the product of two 32-bit numbers can pass 63 bits; its low 32 bits are right in two's complement
    x_N = (x_N * 0x846CA68B) & 0xFFFFFFFF
    return x_N ^ (x_N >> 16)

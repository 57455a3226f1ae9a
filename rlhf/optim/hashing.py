"""Randomness as a function of what it is for: (seed, step, tensor, the element's place in the whole tensor).

Replicas then round alike, results do not depend on how a tensor is sharded, and a resumed run needs no generator state.
"""

import functools
import hashlib
import re

import torch
from torch import Tensor

WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_model\.model)\."
)
"""Parts of a parameter's name that only say how the model is wrapped."""
MASK_64, MASK_32 = (1 << 64) - 1, (1 << 32) - 1


@functools.cache
def tensor_key(name: str) -> int:
    """A fixed 64-bit number for a parameter's name, whatever wraps the model: 8 bytes of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(WRAPPERS.sub("", name).encode(), digest_size=8).digest(), "big")


def mix(*values: int) -> int:
    """64 bits that depend on all bits of the values (taken modulo 2^64) and on their order: SplitMix64's finaliser
    (Steele, Lea and Flood 2014) after each value."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state ^ (value & MASK_64)) + 0x9E3779B97F4A7C15 & MASK_64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK_64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK_64
        state ^= state >> 31
    return state


def random_bits(seed: int, step: int, key: int, index_N: Tensor) -> Tensor:
    """32 random bits for each element, int32: a function of its global index (int64) and the three numbers.

    Compiled with torch.compile, the numbers are mixed outside the graph; `keyed_bits` is the part to put into a graph.
    """
    return keyed_bits(bits_key(seed, step, key), index_N)


def random_bits_range(seed: int, step: int, key: int, start: int, numel: int, device: torch.device | str) -> Tensor:
    """`random_bits` of the elements `start` to `start` + `numel`, in less than half the time: no index is in int64."""
    key_2 = bits_key(seed, step, key)
    parts, stop = [], start + numel
    while start < stop or not parts:
        # as far as the lower half of the index counts up without a wrap of its int32
        until = min(stop, (start >> 31) + 1 << 31)
        low = _signed(start & MASK_32)
        low_N = torch.arange(low, low + until - start, dtype=torch.int32, device=device)
        parts.append(_bits(key_2, low_N, _signed(start >> 32)))
        start = until
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@torch.compiler.disable
def bits_key(seed: int, step: int, key: int) -> Tensor:
    """The two int32 halves of `mix(seed, step, key)`, on the CPU: as a tensor, a new step compiles nothing anew."""
    state = mix(seed, step, key)
    return torch.tensor([_signed(state & MASK_32), _signed(state >> 32)], dtype=torch.int32)


def keyed_bits(key_2: Tensor, index_N: Tensor) -> Tensor:
    """`random_bits` under a key from `bits_key`: plain tensor operations, which torch.compile fuses.

    Two rounds of a bijection of 32-bit numbers, over the two halves of the index, keyed by 64 bits.
    """
    return _bits(key_2, index_N.to(torch.int32), (index_N >> 32).to(torch.int32))


@torch.compiler.disable
def stretch_key(seed: int, step: int, key: int, start: int, numel: int) -> Tensor | None:
    """What `stretch_bits` needs to make `random_bits_range`, int32 on the CPU; None where the upper half of the index
    changes on the way."""
    if start >> 32 != start + max(numel, 1) - 1 >> 32:
        return None
    halves = [half for value in (mix(seed, step, key), start) for half in (value & MASK_32, value >> 32)]
    return torch.tensor([_signed(half) for half in halves], dtype=torch.int32)


def stretch_bits(key_4: Tensor, like_N: Tensor) -> Tensor:
    """The bits of `stretch_key`'s elements, shape of the flat `like_N`; plain tensor operations, as `keyed_bits`."""
    low_N = torch.arange(like_N.shape[0], dtype=torch.int32, device=like_N.device) + key_4[2]
    return _bits(key_4, low_N, key_4[3])


def generator(seed: int, epoch: int, key: int) -> torch.Generator:
    """A generator on the CPU for one choice; torch's global one is left alone."""
    return torch.Generator().manual_seed(mix(seed, epoch, key) >> 1)


def _bits(key_2: Tensor, low_N: Tensor, high_N: Tensor | int) -> Tensor:
    x_N = _mix_32_(low_N ^ key_2[0])
    x_N ^= key_2[1] ^ high_N
    return _mix_32_(x_N)


def _mix_32_(x_N: Tensor) -> Tensor:
    """lowbias32 (C. Wellons, hash-prospector) in place: a bijection; int32 products keep their low 32 bits."""
    x_N ^= (x_N >> 16).bitwise_and_(0xFFFF)
    x_N *= 0x7FEB352D
    x_N ^= (x_N >> 15).bitwise_and_(0x1FFFF)
    x_N *= _signed(0x846CA68B)
    x_N ^= (x_N >> 16).bitwise_and_(0xFFFF)
    return x_N


def _signed(value: int) -> int:
    """The int32 that has the bits of a 32-bit number."""
    return value - (1 << 32) if value >> 31 else value

"""What FRUGAL's state-full part is in each epoch (the steps between two choices): tensors, columns, a chunk, entries.

Every choice is a pure function of its arguments: random ones of (seed, epoch, tensor key) by a generator of their own
on the CPU, so that all ranks choose the same, whatever else draws random numbers, and a resumed run goes on as it would
have.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from rlhf.optim.hashing import generator

Order = Literal["ascending", "descending", "mirror", "random"]
"""How windows walk over the tensors: from the first, from the last, from both ends, or drawn anew in each epoch."""
Rounding = Literal["nearest", "floor", "round"]
"""How `density * total` becomes a count. "nearest": halves up, and at least 1 where density > 0. The others are those
of github.com/fzmushko/FRUGAL, which may give 0: "floor" for columns, rows and entries, "round" (halves to even) for
tensors and ranks."""

ALIGNMENT = 64
"""Chunks begin at multiples of this in larger pieces, so that kernels can load several elements at once."""


def count_of(total: int, density: float, rounding: Rounding = "nearest") -> int:
    """How many of `total` things a density stands for. Raises ValueError for a density outside [0, 1]."""
    if not 0 <= density <= 1:
        raise ValueError(f"density is {density}: it must be in [0, 1]")
    if rounding == "floor":
        return math.floor(density * total)
    if rounding == "round":
        return round(density * total)
    return min(max(1, math.floor(density * total + 0.5)), total) if density > 0 else 0


def density_at(epoch: int, start: float, end: float, epochs: int) -> float:
    """Density that falls linearly from `start` at epoch 0 to `end` at epoch `epochs` and stays there (AdaFRUGAL, arXiv
    2601.11568)."""
    if epoch >= epochs:
        return end
    return start + (end - start) * epoch / epochs


def ordered(total: int, order: Order, seed: int, epoch: int, key: int) -> list[int]:
    """The indices 0 to `total` - 1 as windows walk over them; only "random" depends on seed, epoch and key.

    Raises ValueError for an unknown order.
    """
    if order == "ascending":
        return list(range(total))
    if order == "descending":
        return list(range(total))[::-1]
    if order == "mirror":
        return [index // 2 if index % 2 == 0 else total - 1 - index // 2 for index in range(total)]
    if order == "random":
        return torch.randperm(total, generator=generator(seed, epoch, key)).tolist()
    raise ValueError(f"order is {order!r}: choose ascending, descending, mirror or random")


def choose_tensors(
    total: int, density: float, order: Order, seed: int, epoch: int, key: int, rounding: Rounding = "nearest",
    offset: int | None = None,
) -> list[int]:  # fmt: skip
    """Ascending indices of the state-full tensors: `density` of their number. The next epoch's window begins where this
    one stops; for a density that changes, `offset` is the sum of the earlier counts.

    Raises ValueError for order "mirror" with an odd count (it takes half from each end).
    """
    count = count_of(total, density, rounding)
    if order == "mirror" and count % 2 and count < total:
        raise ValueError(
            f"mirror takes half of the {count} state-full tensors from each end, and {count} is odd: change the density"
            f" {density} (of {total} tensors) or the order"
        )
    offset = epoch * count if offset is None else offset
    return windows(total, count, 0 if order == "random" else offset, ordered(total, order, seed, epoch, key))


def windows(total: int, count: int, offset: int, walk: Sequence[int]) -> list[int]:
    """Ascending indices of `count` tensors from position `offset` of the walk on, which goes round."""
    return sorted(walk[(offset + step) % total] for step in range(count))


def choose_tensors_by_elements(
    sizes: Sequence[int], density: float, order: Order, seed: int, epoch: int, key: int, offset: int | None = None
) -> list[int]:
    """Ascending indices of the state-full tensors: `density` of their elements, within one tensor of the target.

    With a fixed density every tensor is state-full once a round, save where a window is shorter than a tensor; for one
    that changes, `offset` is the sum of the earlier targets.
    """
    target = count_of(sum(sizes), density)
    offset = epoch * target if offset is None else offset
    walk = ordered(len(sizes), order, seed, epoch, key)
    return element_window(sizes, target, 0 if order == "random" else offset, walk)


def element_window(sizes: Sequence[int], target: int, offset: int, walk: Sequence[int]) -> list[int]:
    """Ascending indices of the tensors whose middle lies in a window of `target` elements.

    The tensors lie end to end in the order of `walk`, around a circle; the window begins at `offset`. Each end of the
    window takes or leaves at most half a tensor too much, so the chosen elements differ from `target` by at most the
    largest tensor. A window between two middles takes the tensor that holds its own middle.
    """
    total = sum(sizes)
    if target == 0:
        return []
    if target >= total:
        return list(range(len(sizes)))
    ends = list(accumulate(sizes[index] for index in walk))
    # in half elements, so that middles are whole numbers
    middles = [2 * end - sizes[index] for end, index in zip(ends, walk, strict=True)]
    places = [(middle - 2 * offset) % (2 * total) for middle in middles]
    chosen = [index for place, index in zip(places, walk, strict=True) if place < 2 * target]
    if not chosen:
        middle = (2 * offset + target) % (2 * total)
        chosen = [next(index for end, index in zip(ends, walk, strict=True) if middle < 2 * end)]
    return sorted(chosen)


def choose_columns(
    width: int, density: float, seed: int, epoch: int, key: int, rounding: Rounding = "nearest"
) -> Tensor:
    """Sorted int32 indices of random columns of a tensor with `width` of them, on the CPU."""
    return _choose(width, count_of(width, density, rounding), seed, epoch, key).sort().values


def choose_rows(rows: int, density: float, seed: int, epoch: int, key: int, rounding: Rounding = "nearest") -> Tensor:
    """Sorted int32 indices of random rows of a tensor with `rows` of them, on the CPU."""
    return choose_columns(rows, density, seed, epoch, key, rounding)


def choose_chunk(numel: int, density: float, seed: int, epoch: int, key: int) -> tuple[int, int]:
    """(first, length) of one stretch of a piece of `numel` elements that goes on at the beginning after the end.

    For a piece of a sharded tensor, mix its start into the key, or all pieces of the tensor move alike.
    """
    length = count_of(numel, density)
    if length == numel:
        return 0, numel
    alignment = ALIGNMENT if numel >= ALIGNMENT * ALIGNMENT else 1
    places = -(-numel // alignment)
    return int(torch.randint(places, (), generator=generator(seed, epoch, key))) * alignment, length


def choose_entries(
    numel: int, density: float, seed: int, epoch: int, key: int, rounding: Rounding = "nearest"
) -> Tensor:
    """Random entries of a whole tensor as a bool mask of `numel` elements, on the CPU; drawing it takes 4 bytes more an
    element for the moment."""
    mask = torch.zeros(numel, dtype=torch.bool)
    mask[_choose(numel, count_of(numel, density, rounding), seed, epoch, key)] = True
    return mask


def _choose(total: int, count: int, seed: int, epoch: int, key: int) -> Tensor:
    if count == total:
        return torch.arange(total, dtype=torch.int32)
    return torch.randperm(total, generator=generator(seed, epoch, key), dtype=torch.int32)[:count]

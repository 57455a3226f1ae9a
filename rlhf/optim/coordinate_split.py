"""Which elements of each tensor are state-full in which epoch, as selections of the pieces on this rank, kept until it
ends."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.optim import schedules
from rlhf.optim.base import Slot, parameter_names
from rlhf.optim.buffers import BLOCK
from rlhf.optim.hashing import mix
from rlhf.optim.layout import Piece
from rlhf.optim.selection import Columns, Entries, Everything, Nothing, Rows, Selection, Slices

WHOLE_TENSORS = ("block", "block_budget")
SELECTORS = (*WHOLE_TENSORS, "chunk", "columns", "rows", "randk")
WITH_VIEWS = (*WHOLE_TENSORS, "chunk")
"""Their elements are updated where they are; others are copied, updated and written back."""
NOT_FOR_SHARDS = ("chunk", "rows", "randk")
"""Their moments on a rank that holds rows of a tensor are a run of elements without a shape of its own."""


def state_full_names(group: Mapping[str, Any], tensors: Sequence[tuple[str, tuple[int, ...]]], epoch: int) -> set[str]:
    """Names of the tensors that are state-full as a whole; `tensors` are all of the group, on any rank."""
    density, order, seed = density_of(group, epoch), group["order"], group["seed"]
    is_block = group["selector"] == "block"
    rounding = "round" if is_block and group["rounding"] == "upstream" else "nearest"
    sizes = [1 if is_block else torch.Size(shape).numel() for _, shape in tensors]
    counts = [schedules.count_of(sum(sizes), density_of(group, earlier), rounding) for earlier in range(epoch)]
    offset = sum(counts)
    if is_block:
        chosen = schedules.choose_tensors(len(sizes), density, order, seed, epoch, 0, rounding, offset)
    else:
        chosen = schedules.choose_tensors_by_elements(sizes, density, order, seed, epoch, 0, offset)
    return {tensors[index][0] for index in chosen}


def density_of(group: Mapping[str, Any], epoch: int) -> float:
    """The density of an epoch; it falls linearly to `density_end` over `density_epochs` where these are given."""
    if group["density_end"] is None:
        return group["density"]
    return schedules.density_at(epoch, group["density"], group["density_end"], group["density_epochs"])


def select(
    group: Mapping[str, Any], piece: Piece, epoch: int, chosen_names: set[str], device: torch.device,
    lines: Tensor | None = None,
) -> Selection:  # fmt: skip
    """The state-full elements of one piece. `lines`: columns or rows that were chosen before (a resumed run)."""
    density = density_of(group, epoch)
    selector, seed = group["selector"], group["seed"]
    if density >= 1:
        return Everything(piece.start, piece.numel)
    if density == 0:
        return Nothing(piece.start, piece.numel)
    if selector in WHOLE_TENSORS:
        return (Everything if piece.name in chosen_names else Nothing)(piece.start, piece.numel)
    if selector == "chunk":
        # pieces of one tensor on several ranks begin at places of their own
        key = mix(piece.key, piece.start)
        first, length = schedules.choose_chunk(piece.numel, density, seed, epoch, key) if piece.numel else (0, 0)
        return Slices.wrapping(piece.start, piece.numel, first, length)
    rounding = "floor" if group["rounding"] == "upstream" else "nearest"
    height, width = piece.shape[0], torch.Size(piece.shape[1:]).numel()
    if selector == "randk":
        mask = schedules.choose_entries(height * width, density, seed, epoch, piece.key, rounding)
        return Entries.from_mask(piece.start, mask[piece.start : piece.start + piece.numel].to(device))
    if selector == "rows":
        lines = schedules.choose_rows(height, density, seed, epoch, piece.key, rounding) if lines is None else lines
        return Rows(piece.start, piece.numel, width, lines.to(device))
    lines = schedules.choose_columns(width, density, seed, epoch, piece.key, rounding) if lines is None else lines
    return Columns(piece.start, piece.numel, width, lines.to(device))


def chooses_any(selection: Selection) -> bool:
    """Whether it chooses elements of the tensor, here or, where this rank's piece is empty, elsewhere."""
    has_columns = isinstance(selection, Columns) and len(selection.columns_K) > 0
    return selection.size > 0 or has_columns or isinstance(selection, Everything)


def chooses_all(selection: Selection) -> bool:
    """Whether it chooses the whole piece. Columns never do: an empty piece cannot tell, and all ranks must agree."""
    if isinstance(selection, Columns):
        return False
    return isinstance(selection, Everything) or selection.size == selection.numel > 0


def compact_offsets(selections: Sequence[Selection]) -> list[int]:
    """Where each selection's elements begin in the slot's moments, and the end of the last. All stretches of elements
    begin at multiples of the block that 8-bit state is scaled by."""
    offsets = [0]
    for selection in selections:
        ranges = selection.ranges if isinstance(selection, Slices) else ((0, selection.size),)
        stretches = [stop - first for first, stop in ranges]
        offsets.append(offsets[-1] + sum(map(in_blocks, stretches)))
    if len(selections) == 1 and stretches:
        # nothing follows
        offsets[-1] += stretches[-1] - in_blocks(stretches[-1])
    return offsets


def in_blocks(numel: int) -> int:
    """The next multiple of the block of 8-bit state."""
    return -(-numel // BLOCK) * BLOCK


def group_tensors(group: Mapping[str, Any], slots: Sequence[Slot]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors of the group, whether or not they have a gradient or a piece here."""
    known = slots[0].layout.tensors
    if known is not None:
        return list(known)
    pairs = zip(parameter_names(group), group["params"], strict=True)
    return [(name, tuple(parameter.shape)) for name, parameter in pairs]

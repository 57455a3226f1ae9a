"""What becomes of FRUGAL's moments when the state-full elements are chosen anew."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rlhf.optim.base import Slot, allocate_moment, compute_dtype
from rlhf.optim.buffers import NEAREST, allocate_state, state_buffer
from rlhf.optim.coordinate_split import chooses_all, chooses_any, compact_offsets
from rlhf.optim.layout import local_flat
from rlhf.optim.rules import Rule
from rlhf.optim.selection import Columns, Selection, carry_over


def carry_state(
    group: Mapping[str, Any], slot: Slot, rule: Rule, old: Sequence[Selection] | None, new: Sequence[Selection]
) -> None:
    """Moments for a new choice: zeros, or those of the elements that stay, or the old ones by position."""
    state, mode = slot.state, group["state_mode"]
    size = compact_offsets(new)[-1]
    names = [moment.name for moment in rule.moments(group)]
    has_moments = all(name in state for name in names)
    if mode == "keep" and has_moments and local_flat(state[names[0]]).numel() == size:
        return
    had_any = old is not None and has_moments
    was_whole = had_any and all(map(chooses_all, old))
    is_whole = any(map(chooses_any, new)) and all(map(chooses_all, new))
    if mode == "project" and was_whole and is_whole:
        return
    carried = {}
    if mode == "project" and had_any and isinstance(new[0], Columns) and isinstance(old[0], Columns):
        carried = {
            m.name: carry_over(old[0], new[0], new[0].numel, state_buffer(state, m.name, group["state_dtype"], m.signed)
                               .read(0, old[0].size))
            for m in rule.moments(group)
        }  # fmt: skip
        steps = torch.zeros(torch.Size(slot.layout.pieces[0].shape[1:]).numel(), device=slot.values.device)
        counted = state["step"].to(steps.device).expand(len(old[0].columns_K))
        steps[old[0].columns_K.long()] = state.get("column_step", counted)
        state["column_step"] = steps[new[0].columns_K.long()].clone()
    for name in [*names, "column_step" if not carried else ""]:
        state.pop(name, None)
        state.pop(f"{name}_absmax", None)
    state["step"].zero_()
    if not any(map(chooses_any, new)):
        return
    nearest = torch.full((size if carried else 0,), NEAREST, dtype=torch.int32, device=slot.values.device)
    for moment in rule.moments(group):
        _allocate(group, slot, moment.name, new)
        if carried:
            buffer = state_buffer(state, moment.name, group["state_dtype"], moment.signed)
            buffer.write(0, size, carried[moment.name], lambda: nearest)
    if mode == "project" and isinstance(new[0], Columns) and "column_step" not in state:
        state["column_step"] = torch.zeros(len(new[0].columns_K), device=slot.values.device)


def _allocate(group: Mapping[str, Any], slot: Slot, name: str, selections: Sequence[Selection]) -> None:
    """Zeros for the chosen elements: whole rows of them where there are, so that shards of rows are shards of state."""
    if slot.layout.tensors is None and isinstance(selections[0], Columns):
        allocate_moment(group, slot, name, len(selections[0].columns_K))
    elif slot.layout.tensors is None and chooses_all(selections[0]):
        allocate_moment(group, slot, name)
    else:
        size = compact_offsets(selections)[-1]
        dtype, device = compute_dtype(slot.values), slot.values.device
        allocate_state(slot.state, name, size, group["state_dtype"], dtype, device)

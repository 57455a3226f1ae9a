"""What becomes of FRUGAL's moments when the state-full elements are chosen anew."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rlhf.optim.base import Slot, compute_dtype
from rlhf.optim.buffers import allocate_state, state_buffer
from rlhf.optim.coordinate_split import compact_offsets
from rlhf.optim.rules import Rule
from rlhf.optim.selection import Columns, Selection, carry_over


def carry_state(
    group: Mapping[str, Any], slot: Slot, rule: Rule, old: Sequence[Selection] | None, new: Sequence[Selection]
) -> None:
    """Moments for a new choice: zeros, or those of the elements that stay, or the old ones by position."""
    state, mode = slot.state, group["state_mode"]
    size = compact_offsets(new)[-1]
    names = [moment.name for moment in rule.moments(group)]
    had_any = old is not None and all(name in state for name in names)
    was_whole = had_any and all(selection.size == selection.numel for selection in old)
    is_whole = size > 0 and all(selection.size == selection.numel for selection in new)
    if mode == "keep" and had_any and state[names[0]].numel() == size:
        return
    if mode == "project" and was_whole and is_whole:
        return
    carried = {}
    if mode == "project" and had_any and isinstance(new[0], Columns) and isinstance(old[0], Columns):
        carried = {
            m.name: carry_over(old[0], new[0], new[0].numel, state_buffer(state, m.name, group["state_dtype"], m.signed)
                               .read(0, old[0].size))
            for m in rule.moments(group)
        }  # fmt: skip
        steps = torch.zeros(slot.layout.pieces[0].shape[-1], device=slot.values.device)
        counted = state["step"].to(steps.device).expand(len(old[0].columns_K))
        steps[old[0].columns_K.long()] = state.get("column_step", counted)
        state["column_step"] = steps[new[0].columns_K.long()].clone()
    for name in [*names, "column_step" if not carried else ""]:
        state.pop(name, None)
        state.pop(f"{name}_absmax", None)
    state["step"].zero_()
    if size == 0:
        return
    zeros = torch.zeros(size if carried else 0, dtype=torch.int32, device=slot.values.device)
    for moment in rule.moments(group):
        allocate_state(state, moment.name, size, group["state_dtype"], compute_dtype(slot.values), slot.values.device)
        if carried:
            buffer = state_buffer(state, moment.name, group["state_dtype"], moment.signed)
            buffer.write(0, size, carried[moment.name], lambda: zeros)
    if mode == "project" and isinstance(new[0], Columns) and "column_step" not in state:
        state["column_step"] = torch.zeros(len(new[0].columns_K), device=slot.values.device)

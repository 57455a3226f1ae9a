"""FRUGAL's work on one buffer: the elements that have moments, the elements that have none."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from rlhf.optim.base import Slot
from rlhf.optim.buffers import Plain, parameter_buffer, state_buffer
from rlhf.optim.coordinate_split import compact_offsets, in_blocks
from rlhf.optim.elementwise import Job, read_all, write_all
from rlhf.optim.hashing import mix, random_bits, tensor_key
from rlhf.optim.noise import Noise
from rlhf.optim.rules import Rule
from rlhf.optim.selection import Selection, Slices


class SplitJobs:
    """The work on one slot: state-full jobs, state-free jobs, and what to do after both."""

    def __init__(self) -> None:
        self.state_full: list[Job] = []
        self.state_free: list[Job] = []
        self.endings: list[Callable[[], None]] = []


def split_jobs(group: Mapping[str, Any], slot: Slot, rule: Rule, selections: Sequence[Selection]) -> SplitJobs:
    """Jobs on views where the selection has views; else on copies that are written back after the state-free rule has
    passed over the whole piece."""
    jobs = SplitJobs()
    offsets = compact_offsets(selections)
    moments = []
    if offsets[-1]:
        moments = [state_buffer(slot.state, m.name, group["state_dtype"], m.signed) for m in rule.moments(group)]
    param = parameter_buffer(slot.parameter, slot.state, group["param_precision"], slot.values)
    step = int(slot.state["updates"])
    for piece, selection, compact in zip(slot.layout.pieces, selections, offsets, strict=False):
        if isinstance(selection, Slices):
            at = compact
            for first, stop in selection.ranges:
                local = piece.offset + first
                grad = slot.grad[local : local + stop - first]
                noise = Noise(group["seed"], step, slot.layout, slot.values.device, local)
                jobs.state_full.append(Job(param, local, grad, moments, at, stop - first, noise))
                at += in_blocks(stop - first)
            for first, stop in selection.other_ranges:
                local = piece.offset + first
                grad = slot.grad[local : local + stop - first]
                noise = Noise(group["seed"], step, slot.layout, slot.values.device, local)
                jobs.state_free.append(Job(param, local, grad, (), 0, stop - first, noise))
            continue
        start, stop = piece.offset, piece.offset + piece.numel
        noise = Noise(group["seed"], step, slot.layout, slot.values.device, start)
        whole, grad = read_all(param, start, stop, slot.grad.device), slot.grad[start:stop]
        chosen = selection.gather(whole)

        def chosen_noise(field: str, offset: int, numel: int, piece=piece, selection=selection) -> Tensor:
            index = selection.global_index(slot.values.device, offset, offset + numel)
            return random_bits(group["seed"], step, mix(piece.key, tensor_key(field)), index)

        def finish(whole=whole, chosen=chosen, selection=selection, start=start, noise=noise) -> None:
            selection.scatter_(whole, chosen)
            write_all(param, start, whole, functools.partial(noise, "param"))

        if selection.size:
            grad_chosen = selection.gather(grad).to(chosen.dtype)
            jobs.state_full.append(
                Job(Plain(chosen), 0, grad_chosen, moments, compact, selection.size, chosen_noise)
            )
        jobs.state_free.append(Job(Plain(whole), 0, grad, (), 0, piece.numel, noise))
        jobs.endings.append(finish)
    return jobs


def steps_of(slot: Slot, selections: Sequence[Selection]) -> list[Any]:
    """The step count of each state-full job: one for the slot, or one for each column."""
    counts: list[Any] = []
    for selection in selections:
        if isinstance(selection, Slices):
            counts += [float(slot.state["step"])] * len(selection.ranges)
        elif selection.size:
            has_own = "column_step" in slot.state
            # corrections of the bias need more digits than float32 has
            counts.append(slot.state["column_step"].double() if has_own else float(slot.state["step"]))
    return counts

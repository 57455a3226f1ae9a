"""FRUGAL's step with a subspace as the state-full part: singular vectors of the gradient, or random directions."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf.optim import subspace
from rlhf.optim.base import Slot, allocate_moment, compute_dtype, noise_of
from rlhf.optim.buffers import NEAREST, allocate_state, parameter_buffer, state_buffer
from rlhf.optim.coordinate_split import density_of
from rlhf.optim.elementwise import read_all, write_all
from rlhf.optim.hashing import generator
from rlhf.optim.rules import Numbers, Rule
from rlhf.optim.schedules import count_of

SUBSPACES = ("svd", "random")
POWER = 16


def subspace_step(
    group: Mapping[str, Any], slot: Slot, rule: Rule, lr: float, free: Rule, free_numbers: Numbers, epoch: int
) -> None:
    """One step of one matrix: `rule` with the learning rate `lr` in the subspace, `free` on the residual.

    Raises ValueError for a piece that is not whole rows of a matrix.
    """
    state, (piece,) = slot.state, slot.layout.pieces
    rows, columns = piece.shape
    if piece.start % columns or piece.numel % columns:
        raise ValueError(
            f"selector {group['selector']} needs whole rows, and this rank's piece of {piece.name} cuts one (a ZeRO "
            "partition): use chunk or columns"
        )
    # also on a rank that has all rows: those without any take part
    reduce = slot.layout.reduce
    side = "right" if reduce is not None else subspace.choose_side(rows, columns)
    param = parameter_buffer(slot.parameter, state, group["param_precision"])
    value_MN = read_all(param, 0, piece.numel, slot.grad.device).view(-1, columns)
    grad_MN = slot.grad.view(-1, columns).to(value_MN.dtype)
    if int(state["epoch"]) != epoch:
        _choose(group, slot, rule, grad_MN, side, epoch)
    noise = noise_of(group, slot, int(state["updates"]))
    value_MN.mul_(free_numbers["decay"])
    rest_MN = grad_MN
    if "basis" in state:
        basis_RD = state["basis"]
        low = subspace.project(grad_MN, basis_RD, side)
        rest_MN = subspace.residual(grad_MN, low, basis_RD, side, _largest(grad_MN, reduce))
        state["step"] += 1
        step = _update(group, slot, rule, low, lr, noise)
        value_MN.add_(subspace.project_back(step, basis_RD, side).to(value_MN.dtype))
    free.foreach([value_MN], [rest_MN.to(value_MN.dtype)], [], dict(free_numbers) | {"decay": 1.0})
    write_all(param, 0, value_MN.view(-1), functools.partial(noise, "param"))


def _choose(group: Mapping[str, Any], slot: Slot, rule: Rule, grad_MN: Tensor, side: str, epoch: int) -> None:
    """A basis for the epoch, and the moments in it; of a zero gradient, none until there is another."""
    state, piece = slot.state, slot.layout.pieces[0]
    rows, columns = piece.shape
    rounding = "round" if group["rounding"] == "upstream" else "nearest"
    rank = count_of(min(rows, columns), density_of(group, epoch), rounding)
    names = [moment.name for moment in rule.moments(group)]
    if rank == 0:
        for name in ("basis", *names, *(f"{name}_absmax" for name in names)):
            state.pop(name, None)
        state["epoch"].fill_(float(epoch))
        return
    if group["selector"] == "svd":
        basis_RD = subspace.svd_basis(grad_MN, rank, side, slot.layout.reduce)
    else:
        directions = columns if side == "right" else rows
        basis_RD = subspace.random_basis(directions, rank, generator(group["seed"], epoch, piece.key))
        basis_RD = basis_RD.to(device=grad_MN.device, dtype=compute_dtype(slot.values))
    if basis_RD is None:
        return
    shape = (grad_MN.shape[0], rank) if side == "right" else (rank, columns)
    old_RD, mode = state.get("basis"), group["state_mode"]
    if old_RD is None or mode == "reset" or old_RD.shape != basis_RD.shape:
        for name in names:
            if side == "right":
                allocate_moment(group, slot, name, rank)
            else:
                dtype, device = compute_dtype(slot.values), slot.values.device
                allocate_state(state, name, rank * columns, group["state_dtype"], dtype, device)
        state["step"].zero_()
    elif mode == "project":
        nearest = torch.full((shape[0] * shape[1],), NEAREST, dtype=torch.int32, device=grad_MN.device)
        for moment in rule.moments(group):
            buffer = state_buffer(state, moment.name, group["state_dtype"], moment.signed)
            change = subspace.reproject if moment.signed else subspace.reproject_squares
            carried = change(buffer.read(0, len(nearest)).view(shape), old_RD, basis_RD, side)
            buffer.write(0, len(nearest), carried.reshape(-1), lambda: nearest)
    state["basis"] = basis_RD
    state["epoch"].fill_(float(epoch))


def _update(group: Mapping[str, Any], slot: Slot, rule: Rule, low: Tensor, lr: float, noise: Any) -> Tensor:
    """What the rule would add to a parameter that is `low`'s shape."""
    buffers = [state_buffer(slot.state, m.name, group["state_dtype"], m.signed) for m in rule.moments(group)]
    moments = [read_all(buffer, 0, low.numel(), low.device) for buffer in buffers]
    numbers = dict(rule.numbers(group, lr, float(slot.state["step"]))) | {"decay": 1.0}
    update = torch.zeros_like(low).view(-1)
    rule.foreach([update], [low.reshape(-1)], [[moment] for moment in moments], numbers)
    for index, (buffer, moment) in enumerate(zip(buffers, moments, strict=True)):
        write_all(buffer, 0, moment, functools.partial(noise, f"moment{index}"))
    return update.view(low.shape)


def _largest(grad_MN: Tensor, reduce: subspace.Reduce | None) -> Tensor | None:
    """None, for the largest gradient of a whole matrix. Of row shards, which can only be summed over, a norm of high
    power: between the largest gradient of all shards and three times it."""
    if reduce is None:
        return None
    total = reduce(torch.linalg.vector_norm(grad_MN, ord=POWER, dtype=torch.float64) ** POWER)
    return (total ** (1 / POWER)).to(grad_MN.dtype)

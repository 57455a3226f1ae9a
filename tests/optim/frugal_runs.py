"""Runs of FRUGAL on given tensors and gradients, and what they must equal, step by step and element by element."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.optim import Frugal
from rlhf.optim.coordinate_split import select, state_full_names
from rlhf.optim.hashing import tensor_key
from rlhf.optim.layout import Piece, Pieces, attach
from rlhf.optim.selection import Selection

SHAPES = {"a": (6, 5), "b": (4, 8), "c": (9, 3), "d": (5, 7)}
SETTINGS = {"lr": 1e-2, "weight_decay": 0.1, "density": 0.4, "update_gap": 3, "state_free_lr_scale": 0.5, "seed": 3}
COORDINATES = ("block", "block_budget", "chunk", "columns", "rows", "randk")
"""Selectors of elements; "svd" and "random" are subspaces."""


def tensors_of(dtype: torch.dtype, seed: int = 0, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def gradients_of(dtype: torch.dtype, steps: int) -> list[dict[str, Tensor]]:
    """With some zeros, whose sign is zero."""
    grads = [tensors_of(dtype, seed=1 + step) for step in range(steps)]
    return [{name: grad.masked_fill(grad.abs() < 0.1, 0) for name, grad in each.items()} for each in grads]


def run(start: Mapping[str, Tensor], grads: Sequence[Mapping[str, Tensor]], **settings: Any) -> dict[str, Tensor]:
    """Weights after the steps."""
    optimizer, parameters = frugal(start, **settings)
    for each in grads:
        step(optimizer, parameters, each)
    return {name: parameter.detach() for name, parameter in parameters.items()}


def frugal(start: Mapping[str, Tensor], **settings: Any) -> tuple[Frugal, dict[str, nn.Parameter]]:
    parameters = {name: nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    settings = {"role": "split", "impl": "foreach"} | SETTINGS | settings
    return Frugal(parameters.items(), **settings), parameters


def step(optimizer: Frugal, parameters: Mapping[str, nn.Parameter], grads: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.grad = grads[name].to(parameter.dtype).clone()
    optimizer.step()


def composed(start: Tensor, grads: Sequence[Tensor], selections: Sequence[Selection], **settings: Any) -> Tensor:
    """A flat tensor of which the elements of an epoch's selection are trained alone, by AdamW from zero moments, and
    the others by signSGD with decoupled decay."""
    settings = SETTINGS | settings
    lr, decay = settings["lr"], 1 - settings["lr"] * settings["weight_decay"]
    value = start.clone()
    for epoch, selection in enumerate(selections):
        compact = nn.Parameter(selection.gather(value).clone())
        adamw = Frugal([compact], lr=lr, weight_decay=settings["weight_decay"], role="full", impl="foreach")
        for grad in grads[epoch * settings["update_gap"] : (epoch + 1) * settings["update_gap"]]:
            compact.grad = selection.gather(grad).clone()
            adamw.step()
            value.mul_(decay).add_(grad.sign(), alpha=-lr * settings["state_free_lr_scale"])
            selection.scatter_(value, compact.detach())
    return value


def selections_of(optimizer: Frugal, piece: Piece, epochs: int) -> list[Selection]:
    """What the optimizer chooses of a piece in each epoch."""
    (group,) = optimizer.param_groups
    tensors, device = list(SHAPES.items()), torch.device("cpu")
    is_whole_tensors = group["selector"].startswith("block")
    return [
        select(group, piece, epoch, state_full_names(group, tensors, epoch) if is_whole_tensors else set(), device)
        for epoch in range(epochs)
    ]


def whole(name: str, offset: int = 0) -> Piece:
    return Piece(name, tensor_key(name), SHAPES[name], 0, torch.Size(SHAPES[name]).numel(), offset)


def row_shards() -> list[list[Piece]]:
    """Rows of each tensor on two ranks, with padding between tensors, as ZeRO aligns them."""
    ranks: list[list[Piece]] = [[], []]
    for name, (rows, width) in SHAPES.items():
        for rank, (first, last) in enumerate(((0, (rows + 1) // 2), ((rows + 1) // 2, rows))):
            offset = ranks[rank][-1].offset + ranks[rank][-1].numel + 3 if ranks[rank] else 0
            numel = (last - first) * width
            ranks[rank].append(Piece(name, tensor_key(name), SHAPES[name], first * width, numel, offset))
    return ranks


def cuts_at(*places: int) -> list[list[Piece]]:
    """The tensors end to end, cut at these places, as ZeRO cuts them."""
    total = sum(torch.Size(shape).numel() for shape in SHAPES.values())
    bounds = [0, *places, total]
    ranks = []
    for first, last in itertools.pairwise(bounds):
        pieces, at = [], 0
        for name, shape in SHAPES.items():
            numel = torch.Size(shape).numel()
            low, high = max(first, at), min(last, at + numel)
            if low < high:
                pieces.append(Piece(name, tensor_key(name), shape, low - at, high - low, low - first))
            at += numel
        ranks.append(pieces)
    return ranks


def flat_of(pieces: Sequence[Piece], tensors: Mapping[str, Tensor]) -> Tensor:
    """A rank's partition; its padding is 7."""
    last = pieces[-1]
    flat = torch.full((last.offset + last.numel + 2,), 7.0, dtype=next(iter(tensors.values())).dtype)
    for piece, values in _stretches(pieces, tensors):
        flat[piece.offset : piece.offset + piece.numel] = values
    return flat


def run_in_partitions(
    ranks: Sequence[Sequence[Piece]],
    start: Mapping[str, Tensor],
    grads: Sequence[Mapping[str, Tensor]],
    **settings: Any,
) -> dict[str, Tensor]:
    """Weights after the steps of ranks that each hold pieces in a flat tensor."""
    result = {name: torch.empty_like(tensor) for name, tensor in start.items()}
    for pieces in ranks:
        flat = nn.Parameter(flat_of(pieces, start))
        attach(flat, Pieces(tuple(pieces), tensors=tuple(SHAPES.items())))
        optimizer = Frugal([flat], **{"role": "split", "impl": "foreach"} | SETTINGS | settings)
        for each in grads:
            # the gradient of padding is not looked at
            flat.grad = flat_of(pieces, each)
            optimizer.step()
        for piece, values in _stretches(pieces, result):
            values.copy_(flat.detach()[piece.offset : piece.offset + piece.numel])
        padding = torch.ones(flat.numel(), dtype=torch.bool)
        for piece in pieces:
            padding[piece.offset : piece.offset + piece.numel] = False
        assert (flat.detach()[padding] == 7).all()
    return result


def _stretches(pieces: Sequence[Piece], tensors: Mapping[str, Tensor]) -> Iterator[tuple[Piece, Tensor]]:
    for piece in pieces:
        yield piece, tensors[piece.name].view(-1)[piece.start : piece.start + piece.numel]

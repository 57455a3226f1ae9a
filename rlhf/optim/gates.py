"""How large a group's gradient is, over all ranks, as exactly as the gates that look at it need to know."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rlhf.optim.layout import Pieces, sum_by_layout


def group_rms(
    grads: Sequence[Sequence[Tensor]], layouts: Sequence[Sequence[Pieces]], enough: Sequence[float | None]
) -> list[float]:
    """RMS of the gradient of each group, of flat tensors with their layouts. All ranks must call it.

    `enough`, by group: None for the exact value; else one at or above `enough` may stand for any larger one, so that
    gradients are read only until it is reached; 0 reads none. Every rank finds the same values.
    """
    every = [layout for of_group in layouts for layout in of_group]
    squares = [
        square
        for of_group, around, least in zip(grads, layouts, enough, strict=True)
        for square in _squares(of_group, None if least is None else least**2 * _elements(around))
    ]
    # padding is no gradient
    counts = torch.tensor([float(layout.numel) for layout in every], dtype=torch.float64)
    squares_L = torch.stack(squares)
    totals = sum_by_layout([*every, *every], torch.cat([squares_L, counts.to(squares_L.device)])).view(2, -1)
    by_group = [part.sum(1) for part in totals.split([len(of_group) for of_group in grads], dim=1)]
    return [(total / max(count, 1)) ** 0.5 for total, count in torch.stack(by_group).tolist()]


def _squares(grads: Sequence[Tensor], enough: float | None) -> Iterator[Tensor]:
    """Sum of squares of each tensor, float64 scalars; 0 for those that come after the sum is `enough`."""
    if enough is None:
        yield from (norm.square() for norm in _norms(grads))
        return
    total, first, count = 0.0, 0, 1
    while first < len(grads) and total < enough:
        # twice as many each time: a GPU is waited for a few times at most
        part = [norm.square() for norm in _norms(grads[first : first + count])]
        yield from part
        total, first, count = total + float(torch.stack(part).sum()), first + len(part), 2 * count
        if total != total:
            break
    yield from [torch.zeros((), dtype=torch.float64, device=grads[0].device)] * len(grads[first:])


def _elements(layouts: Sequence[Pieces]) -> int:
    """Elements of the group's tensors on all ranks, or more."""
    names = {piece.name: piece.shape for layout in layouts for piece in layout.pieces}
    for layout in layouts:
        names |= dict(layout.tensors or ())
    return sum(torch.Size(shape).numel() for shape in names.values())


def _norms(grads: Sequence[Tensor]) -> list[Tensor]:
    """Norm of each tensor, float64 scalars. The norm of float16 can pass its largest value."""
    norms: dict[int, Tensor] = {}
    for dtype in {grad.dtype for grad in grads}:
        places = [index for index, grad in enumerate(grads) if grad.dtype == dtype]
        wide = torch.promote_types(dtype, torch.float32)
        of_dtype = torch._foreach_norm([grads[index] for index in places], 2, dtype=wide)
        norms |= {index: norm.double() for index, norm in zip(places, of_dtype, strict=True)}
    return [norms[index] for index in range(len(grads))]

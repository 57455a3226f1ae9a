"""Where the elements of a local buffer come from: whole tensors, rows of a sharded tensor, pieces in a flat partition.

A step works on contiguous 1-D views of what is stored on this rank. A `Piece` says which tensor a stretch of such a
view belongs to and where in it the stretch begins, so that what must not depend on sharding (which elements are
state-full, how a value is rounded, a matrix's norm) is a function of the tensor's name and of the element's place in
the whole tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from rlhf.optim.hashing import tensor_key

PIECES = "optimizer_pieces"
"""Attribute of a flat partition that holds its `Pieces`; set by rlhf.optim.zero."""


@dataclass(frozen=True, slots=True)
class Piece:
    """`numel` elements at `offset` of a local 1-D buffer: those of tensor `name` (of `shape`) from flat index `start`
    on."""

    name: str
    key: int
    shape: tuple[int, ...]
    start: int
    numel: int
    offset: int

    @property
    def is_whole(self) -> bool:
        return self.numel == _numel(self.shape)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of one buffer, and `reduce`, which sums a vector over the ranks that hold the tensors' other pieces
    (None where this rank has all of them). `tensors` are the names and sizes of all tensors of the buffer's group, on
    any rank."""

    pieces: tuple[Piece, ...]
    reduce: Callable[[Tensor], Tensor] | None = None
    tensors: tuple[tuple[str, tuple[int, ...]], ...] | None = None


def pieces_of(parameter: Tensor, name: str) -> Pieces:
    """The layout of a parameter's local buffer.

    Raises NotImplementedError for a tensor that is sharded along another dimension than its first: its local elements
    are not one stretch of the whole.
    """
    attached = getattr(parameter, PIECES, None)
    if attached is not None:
        return attached
    shape = tuple(parameter.shape)
    if not isinstance(parameter, DTensor):
        return Pieces((Piece(name, tensor_key(name), shape, 0, parameter.numel(), 0),))
    for placement in parameter.placements:
        if not isinstance(placement, Replicate) and not (type(placement) is Shard and placement.dim == 0):
            raise NotImplementedError(
                f"{name} is placed as {placement}: optimizers of this package need shards of rows (FSDP2's default); "
                "shard its first dimension"
            )
    local_shape, offsets = compute_local_shape_and_global_offset(shape, parameter.device_mesh, parameter.placements)
    row = _numel(shape[1:])
    piece = Piece(name, tensor_key(name), shape, offsets[0] * row if shape else 0, _numel(local_shape), 0)
    return Pieces((piece,), _mesh_sum(parameter))


def local_flat(tensor: Tensor) -> Tensor:
    """The elements on this rank as a 1-D view. Raises ValueError where there is no such view."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if not local.is_contiguous():
        raise ValueError(f"a parameter of shape {tuple(tensor.shape)} is not contiguous: call .contiguous() first")
    return local.view(-1)


def _mesh_sum(parameter: DTensor) -> Callable[[Tensor], Tensor] | None:
    """Sums over the mesh dimensions that shard the tensor; replicas hold the same and are not counted twice."""
    mesh = parameter.device_mesh
    sharded = [index for index, placement in enumerate(parameter.placements) if isinstance(placement, Shard)]
    groups = [mesh.get_group(index) for index in sharded if mesh.size(index) > 1]
    if not groups:
        return None

    def reduce(values: Tensor) -> Tensor:
        for group in groups:
            dist.all_reduce(values, group=group)
        return values

    return reduce


def _numel(shape: Any) -> int:
    return torch.Size(shape).numel()

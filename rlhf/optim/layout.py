"""Where the elements of a local buffer come from: whole tensors, rows of a sharded tensor, pieces in a flat partition.

A step works on contiguous 1-D views of what is stored on this rank. A `Piece` says which tensor a stretch of such a
view belongs to and where in it the stretch begins, so that what must not depend on sharding (which elements are
state-full, how a value is rounded, a matrix's norm) is a function of the tensor's name and of the element's place in
the whole tensor.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils.weak import WeakTensorKeyDictionary

from rlhf.optim.hashing import tensor_key

# beside the tensors, not on them: DeepSpeed pickles its flat partitions with all their attributes
_PARTITIONS = WeakTensorKeyDictionary()


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


@dataclass(frozen=True, slots=True)
class SumOverRanks:
    """Sums a tensor over the ranks of each of the process groups, in place where it can."""

    groups: tuple[Any, ...]

    def __call__(self, values: Tensor) -> Tensor:
        for group in self.groups:
            # an optimizer that is offloaded to the CPU has its norms there, and NCCL takes tensors of the GPU alone
            is_away = values.device.type == "cpu" and dist.get_backend(group) == dist.Backend.NCCL
            values = values.cuda() if is_away else values
            dist.all_reduce(values, group=group)
            values = values.cpu() if is_away else values
        return values


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of one buffer, and `reduce`, which sums over the ranks that hold the tensors' other pieces (None where
    this rank has all of them). `tensors` are the names and shapes of all tensors of a flat partition's group, on any
    rank; None for a buffer of one tensor, of which each rank has a piece, perhaps of no elements."""

    pieces: tuple[Piece, ...]
    reduce: SumOverRanks | None = None
    tensors: tuple[tuple[str, tuple[int, ...]], ...] | None = None

    @property
    def numel(self) -> int:
        """Elements without padding."""
        return sum(piece.numel for piece in self.pieces)

    def parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(index of a piece, first, last) of each stretch of a piece in the elements `start` to `stop` of the buffer.
        """
        for index, piece in enumerate(self.pieces):
            first, last = max(start, piece.offset), min(stop, piece.offset + piece.numel)
            if first < last:
                yield index, first, last


def attach(partition: Tensor, layout: Pieces) -> None:
    """Say what a flat partition consists of."""
    _PARTITIONS[partition] = layout


def attached(parameter: Tensor) -> Pieces | None:
    """The layout of a flat partition, None where there is none."""
    # asked of every parameter at every step, and most programs have no partitions
    return _PARTITIONS.get(parameter) if _PARTITIONS else None


def pieces_of(parameter: Tensor, name: str) -> Pieces:
    """The layout of a parameter's local buffer.

    Raises NotImplementedError for a tensor that is sharded along another dimension than its first: its local elements
    are not one stretch of the whole.
    """
    layout = attached(parameter)
    if layout is not None:
        return layout
    shape = tuple(parameter.shape)
    if not isinstance(parameter, DTensor):
        return _whole(name, shape)
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


@functools.cache
def _whole(name: str, shape: tuple[int, ...]) -> Pieces:
    return Pieces((Piece(name, tensor_key(name), shape, 0, _numel(shape), 0),))


def local_flat(tensor: Tensor) -> Tensor:
    """The elements on this rank as a 1-D view. Raises ValueError where there is no such view."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if not local.is_contiguous():
        raise ValueError(f"a parameter of shape {tuple(tensor.shape)} is not contiguous: call .contiguous() first")
    return local.view(-1)


def shaped_like(flat: Tensor, parameter: Tensor, width: int | None = None) -> Tensor:
    """`flat` with the parameter's shape, or rows of `width` elements, as a DTensor that is placed as the parameter
    where that is one: distributed checkpoints cut and join it as they do the parameter."""
    shape = tuple(parameter.shape) if width is None else (parameter.shape[0], width)
    if not isinstance(parameter, DTensor):
        return flat.view(shape)
    rows = parameter.to_local().shape[:1]
    local = flat.view(*rows, *shape[1:])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, shape=torch.Size(shape), stride=stride, run_check=False
    )


def placed_like(value: Tensor, parameter: Tensor) -> Tensor:
    """State of the whole parameter, loaded as such or as another run's shards, as this run places the parameter."""
    if isinstance(value, DTensor) and not isinstance(parameter, DTensor):
        return value.full_tensor()
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):
        mesh = parameter.device_mesh
        return distribute_tensor(value.to(parameter.device), mesh, parameter.placements, src_data_rank=None)
    return value


def sum_by_layout(layouts: Sequence[Pieces], values_L: Tensor) -> Tensor:
    """One value a layout, summed over the ranks that hold its tensors' other pieces."""
    sums_L = values_L.clone()
    for reduce in dict.fromkeys(layout.reduce for layout in layouts):
        if reduce is not None:
            index = _index([layout.reduce == reduce for layout in layouts], values_L)
            sums_L[index] = reduce(values_L[index])
    return sums_L


def sum_by_tensor(layouts: Sequence[Pieces], values_P: Tensor) -> Tensor:
    """One value a piece, in the order of the layouts' pieces, summed over all pieces of its tensor on any rank.

    All ranks must call it, those without pieces too.
    """
    sums_P = values_P.clone()
    ends = [0]
    for layout in layouts:
        ends.append(ends[-1] + len(layout.pieces))
        if layout.reduce is not None and layout.tensors is not None:
            # ranks hold different tensors
            place = {name: index for index, (name, _) in enumerate(layout.tensors)}
            places = torch.tensor([place[piece.name] for piece in layout.pieces], dtype=torch.int64).to(sums_P.device)
            sums_T = values_P.new_zeros(len(layout.tensors))
            sums_T[places] = values_P[ends[-2] : ends[-1]]
            sums_P[ends[-2] : ends[-1]] = layout.reduce(sums_T)[places]
    single = [layout for layout in layouts if layout.tensors is None]
    index = _index([layout.tensors is None for layout in layouts for _ in layout.pieces], values_P)
    sums_P[index] = sum_by_layout(single, values_P[index])
    return sums_P


def _index(is_chosen: Sequence[bool], like: Tensor) -> Tensor:
    return torch.tensor([i for i, chosen in enumerate(is_chosen) if chosen], dtype=torch.int64).to(like.device)


def _mesh_sum(parameter: DTensor) -> SumOverRanks | None:
    """Sums over the mesh dimensions that shard the tensor; replicas hold the same and are not counted twice."""
    mesh = parameter.device_mesh
    sharded = [index for index, placement in enumerate(parameter.placements) if isinstance(placement, Shard)]
    groups = tuple(mesh.get_group(index) for index in sharded if mesh.size(index) > 1)
    return SumOverRanks(groups) if groups else None


def _numel(shape: Any) -> int:
    return torch.Size(shape).numel()

"""The few collective operations the trainer needs; on one process each is the identity."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

BUCKET_BYTES = 64 * 2**20


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank_of_world() -> tuple[int, int]:
    """(this process's rank, number of ranks)."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def sum_numbers(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Sum by name over ranks, in float64. Every rank must give the same names."""
    names = sorted(values)
    if not is_distributed() or not names:
        return dict(values)
    tensor = torch.tensor([float(values[name]) for name in names], dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(names, tensor.tolist(), strict=True))


def sum_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def maximum(value: int, device: torch.device) -> int:
    if not is_distributed():
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def barrier() -> None:
    """Wait for all ranks."""
    if is_distributed():
        dist.barrier()


def gather_lists(values: list[Any]) -> list[Any]:
    """The ranks' lists, concatenated in the order of ranks, on every rank."""
    if not is_distributed():
        return values
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, values)
    return [value for part in gathered for value in part]


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Sum .grad over ranks in place, in flat buckets; a missing gradient counts as 0."""
    if not is_distributed():
        return
    bucket: list[torch.Tensor] = []
    size = 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        size += parameter.grad.numel() * parameter.grad.element_size()
        if size >= BUCKET_BYTES:
            _sum_bucket(bucket)
            bucket, size = [], 0
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(gradients: list[torch.Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()

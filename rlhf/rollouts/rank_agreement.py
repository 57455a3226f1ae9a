"""What the main rank knows, told to all; on one process the identity."""

from typing import TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def rank_and_world() -> tuple[int, int]:
    """(this process's rank, number of ranks)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def from_main_rank(value: Value) -> Value:
    """The main rank's value on every rank. Collective."""
    if rank_and_world()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]

"""Files of a sharded checkpoint: each rank writes the stretches of tensors that it has, and a run with other ranks
reads the stretches that it needs.

A stretch is a run of elements of one flattened tensor. Its place in the whole is written with it, so files do not
depend on who held what: FSDP2's rows and ZeRO's flat partitions are both stretches.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

PATTERN = "shard-*.safetensors"


class Stretch(NamedTuple):
    """`values` (1-D) are the elements from `start` on of the flattened tensor `key`, which has this shape."""

    key: str
    shape: tuple[int, ...]
    start: int
    values: Tensor


class ShardError(ValueError):
    """A shard lacks what is asked of it; the message names the tensor."""


def shard_name(rank: int, ranks: int) -> str:
    """Of one rank's file."""
    return f"shard-{rank:05d}-of-{ranks:05d}.safetensors"


def write_shard(file: Path, stretches: Iterable[Stretch]) -> None:
    """Write one rank's stretches; empty ones are left out."""
    tensors: dict[str, Tensor] = {}
    places: dict[str, tuple[str, tuple[int, ...], int]] = {}
    # in an order that does not depend on how the optimizer came by its state: equal runs write equal files
    filled = sorted((s for s in stretches if s.values.numel()), key=lambda s: (s.key, s.start))
    for number, stretch in enumerate(filled):
        name = f"{number:06d}"
        tensors[name] = stretch.values.detach().to("cpu", copy=True).contiguous()
        places[name] = (stretch.key, stretch.shape, stretch.start)
    save_file(tensors, file, metadata={"stretches": json.dumps(places)})


class ShardReader:
    """Reads any stretch of any tensor from the files of all ranks."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [safe_open(file, "pt") for file in files]
        self.ranks = len(files)
        self._found: dict[str, list[tuple[int, int, str]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for index, file in enumerate(self._files):
            for name, (key, shape, start) in json.loads(file.metadata()["stretches"]).items():
                self._found.setdefault(key, []).append((start, index, name))
                self._shapes[key] = tuple(shape)

    def keys(self) -> list[str]:
        """Of all tensors."""
        return list(self._found)

    def shape(self, key: str) -> tuple[int, ...]:
        """Of the whole tensor. Raises ShardError where there is none."""
        if key not in self._shapes:
            raise ShardError(f"the checkpoint has no {key}: it is of another model or optimizer")
        return self._shapes[key]

    def dtype(self, key: str) -> torch.dtype:
        """Of the tensor. Raises ShardError where there is none."""
        self.shape(key)
        _, index, name = self._found[key][0]
        return self._files[index].get_slice(name)[0:1].dtype

    def read(self, key: str, start: int, numel: int) -> Tensor:
        """Elements `start` to `start + numel` of the flattened tensor. Raises ShardError where some are missing."""
        self.shape(key)
        result, filled = torch.empty(numel, dtype=self.dtype(key)), 0
        for first, index, name in sorted(self._found[key]):
            part = self._files[index].get_slice(name)
            (length,) = part.get_shape()
            low, high = max(start, first), min(start + numel, first + length)
            if low < high:
                result[low - start : high - start] = part[low - first : high - first]
                filled += high - low
        if filled < numel:
            raise ShardError(f"{filled} of the elements {start} to {start + numel} of {key} are in the checkpoint")
        return result

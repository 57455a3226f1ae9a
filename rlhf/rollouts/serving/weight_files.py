"""Weights as safetensors files in buckets of bounded size: written by the trainer, mapped by servers."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def write_weight_files(
    weights: Iterable[tuple[str, torch.Tensor]], folder: Path, dtype: torch.dtype, bucket_bytes: int
) -> list[str]:
    """Write (name, tensor) pairs in `dtype` to numbered files, each of at most `bucket_bytes` or of one tensor.

    Returns the files' names in order. A pair is copied to the CPU when it is drawn, so that `weights` may reuse its
    memory. Raises OSError where there is no room.
    """
    names: list[str] = []
    bucket: dict[str, torch.Tensor] = {}
    size = 0

    def flush() -> None:
        nonlocal bucket, size
        if bucket:
            check_room(folder, size)
            names.append(f"{len(names):05d}.safetensors")
            save_file(bucket, folder / names[-1])
            bucket, size = {}, 0

    for name, tensor in weights:
        amount = tensor.numel() * dtype.itemsize
        if size + amount > bucket_bytes:
            flush()
        # a copy: safetensors refuses tensors that share memory, as tied ones do
        bucket[name] = torch.empty(tensor.shape, dtype=dtype).copy_(tensor.detach())
        size += amount
    flush()
    return names


def read_weight_files(folder: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) pairs of the files, one at a time. Raises FileNotFoundError with what to do."""
    for file_name in names:
        path = folder / Path(file_name).name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not visible to the server: if it runs on another machine or in another container, "
                "set engine.transfer: http"
            )
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dictionary
                yield name, file.get_tensor(name)


def check_room(folder: Path, needed: int) -> None:
    """Raises OSError where a folder's file system has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 2**20:.0f} MiB free and the next file of weights takes {needed / 2**20:.0f}: "
            "enlarge it (in a container: --shm-size) or set engine.weights_folder to another folder"
        )

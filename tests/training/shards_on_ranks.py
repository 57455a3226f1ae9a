"""Run by torchrun with two ranks: a sharded checkpoint, of which each rank hashes what it wrote, and one that fails on
the second. Argument: a folder."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from rlhf.training import checkpoint as module
from rlhf.training.checkpoint import Checkpoint, CheckpointError, save_sharded_checkpoint
from rlhf.training.weights.shard_files import Stretch, shard_name

WHOLE = ["optimizer.pt", "pending.jsonl", "state.json", "weights.safetensors"]


def main(folder: Path) -> None:
    """Raises AssertionError on a rank that hashes another's file, or does not hear of the error."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    hashed: list[str] = []
    sha256 = module._sha256

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    module._sha256 = noted
    stretches = [Stretch("policy.weights/w", (8,), 4 * rank, torch.arange(4.0) + rank)]
    save_sharded_checkpoint(folder, Checkpoint({"step": 1, "config": {}}, {}, {}, []), stretches)
    assert sorted(hashed) == sorted([shard_name(rank, 2), *(WHOLE if rank == 0 else [])]), (rank, hashed)

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    if rank == 1:
        module._sha256 = full
    try:
        save_sharded_checkpoint(folder, Checkpoint({"step": 2, "config": {}}, {}, {}, []), stretches)
    except CheckpointError as error:
        assert "rank 1: " in str(error) and "No space left" in str(error), error
    else:
        raise AssertionError("rank 1 had no space left")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

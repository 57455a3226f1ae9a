"""Run by torchrun: the critic after a step with the samples on two ranks, twelve and twenty, written by rank 0."""

import sys
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file

from tests.invariants.ppo_step import weights_after_a_step

if __name__ == "__main__":
    model, folder, out = sys.argv[1:]
    Accelerator(cpu=True)
    share = slice(0, 12) if dist.get_rank() == 0 else slice(12, 32)
    found = {trunk: weights_after_a_step(model, Path(folder), trunk, 48, share) for trunk in ("separate", "policy")}
    if dist.get_rank() == 0:
        save_file(found, out)
    dist.barrier()

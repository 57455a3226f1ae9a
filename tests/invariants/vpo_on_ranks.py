"""Run by torchrun: VPO's gradient with the prompts on two ranks, three and five, written by rank 0."""

import sys
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file

from tests.invariants.vpo_update import SETTINGS, vpo_gradient

if __name__ == "__main__":
    model, folder, out = sys.argv[1:]
    Accelerator(cpu=True)
    share = slice(0, 3) if dist.get_rank() == 0 else slice(3, 8)
    found = {}
    for name, settings in SETTINGS.items():
        gradient, metrics = vpo_gradient(model, Path(folder), settings, 48, share)
        found[name] = gradient
        found[f"{name} loss"] = gradient.new_tensor([metrics["loss"]])
    if dist.get_rank() == 0:
        save_file(found, out)
    dist.barrier()

"""Run by torchrun: CAPO's gradient with the samples on two ranks, 12 and 20, written by rank 0."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file

from rlhf.training.collectives import gather_lists
from tests.invariants.capo_step import capo_step
from tests.invariants.test_capo_split import CASES

if __name__ == "__main__":
    model, folder, out = sys.argv[1:]
    Accelerator(cpu=True)
    share = slice(0, 12) if dist.get_rank() == 0 else slice(12, 32)
    found = {}
    for name, (preset, limits) in CASES.items():
        found[name], accepted, _ = capo_step(model, Path(folder), preset, 48, share, **limits)
        found[f"{name}_accepted"] = torch.tensor(sorted(gather_lists(accepted.tolist())))
    if dist.get_rank() == 0:
        save_file(found, out)
    dist.barrier()

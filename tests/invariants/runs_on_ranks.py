"""Run by torchrun: whole runs, one after the other. Arguments: their config files."""

import sys

import torch.distributed as dist
from accelerate import Accelerator

from rlhf.config.grpo import GRPOConfig
from rlhf.config.loading import load_config
from rlhf.trainers.run import run

if __name__ == "__main__":
    Accelerator(cpu=True)
    assert dist.get_world_size() == 2
    for file in sys.argv[1:]:
        run(load_config(GRPOConfig, ["--config", file]))
    dist.barrier()

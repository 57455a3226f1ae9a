"""Run by torchrun: the weights after three steps of the matrix's runs, with the sharding that the environment asks for.

Arguments: a checkpoint, a folder for what the guards write, the file that the first rank writes weights to, and the
names of the runs, all where there are none.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from rlhf.config.sharding import sharding_from_environment
from rlhf.training.launch_checks import COLLECTIVE_TIMEOUT, check_launch, start_accelerator
from tests.invariants.sharded_runs import LOW_PRECISION, MATRIX, UNEVEN_SHARES, weights_after


def main(model: str, folder: str, out: str, *names: str) -> None:
    sharding = sharding_from_environment(os.environ)
    accelerator = start_accelerator(sharding)
    check_launch(accelerator, sharding)
    (backend,) = {dist.group.WORLD._get_backend(torch.device("cpu"))}
    assert backend.options._timeout == COLLECTIVE_TIMEOUT
    prompts = UNEVEN_SHARES[accelerator.process_index]
    weights = {}
    for run in (*MATRIX, *LOW_PRECISION):
        if not names or run.name in names:
            after = weights_after(run, model, Path(folder), sharding, prompts)
            weights |= {f"{run.name}/{name}": tensor.contiguous() for name, tensor in after.items()}
            print(run.name, flush=True)
    if accelerator.is_main_process:
        save_file(weights, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

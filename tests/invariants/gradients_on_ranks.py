"""Run by torchrun: the gradient of one optimizer step on 32 samples that the ranks share, for every preset.

Arguments: a checkpoint, a folder for what the guards write, and the file that the first rank writes gradients to.
"""

import sys
from pathlib import Path

import torch.distributed as dist
from accelerate import PartialState
from safetensors.torch import save_file

from rlhf.config.algorithm import PRESETS
from tests.invariants.one_step import one_step_gradient


def main(model: str, folder: str, out: str) -> None:
    state = PartialState(cpu=True)
    if state.num_processes != 2:
        raise AssertionError(f"{state.num_processes} processes")
    # an uneven share: three groups against five, so that the ranks run different numbers of micro-batches
    shares = (slice(0, 12), slice(12, 32))
    gradients = {
        preset: one_step_gradient(model, Path(folder), preset, budget=1, share=shares[state.process_index])
        for preset in PRESETS
    }
    if state.is_main_process:
        save_file(gradients, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

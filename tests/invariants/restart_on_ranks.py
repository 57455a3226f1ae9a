"""Run by torchrun: a policy that is set back to the reference computes with the reference's weights, although its
layers stay gathered after a forward pass.

Arguments: a checkpoint and a folder for what the guards write.
"""

import os
import sys
from pathlib import Path

import torch.distributed as dist

from rlhf.config.division import division_from_environment
from rlhf.training.batch import TrainingSample
from tests.invariants.sharded_runs import UNEVEN_SHARES, Run, make, samples_of


def main(model: str, folder: str) -> None:
    assert division_from_environment(os.environ).keeps_gathered
    run = Run("optimistic", lora=True)
    learner, algorithm = make(run, model, Path(folder), "fsdp2")
    samples = samples_of(run, UNEVEN_SHARES[dist.get_rank()])
    learned = [TrainingSample(sample, 0.0) for sample in samples if sample.completion_ids]
    for step in (1, 2, 3):
        learner.update(algorithm.prepare(samples, learner), algorithm, step)
    assert learner.logps(learned) != learner.reference_logps(learned), "it has learned"
    learner.logps(learned)  # what gathers the weights as they are
    learner.restart_policy()
    assert learner.logps(learned) == learner.reference_logps(learned)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

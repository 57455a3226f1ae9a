"""Run by torchrun with two ranks or three: two steps, a sharded checkpoint, two steps more; and the same from the
checkpoint.

Arguments: a checkpoint of a model, a folder, and `write`, `other_ranks` or `other_method`. Ranks that write leave
sharded checkpoints of each run there and compare to the bit; others, on another number of ranks or in shards of another
method, go on from those and compare with what the first ended at, where the optimizer's state allows it.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from rlhf.config.sharding import sharding_from_environment
from rlhf.training.checkpoint import Checkpoint, load_checkpoint, save_sharded_checkpoint
from rlhf.training.launch_checks import start_accelerator
from rlhf.training.learner import Learner
from rlhf.training.weights.shard_files import ShardReader
from rlhf.training.weights.sharded_state import BoundState, load_stretches, stretches_of
from tests.invariants.sharded_runs import Run, make, samples_of

RUNS = (Run("grpo"), Run("grpo", "frugal"), Run("grpo", "auon", lora=True), Run("ppo"))
CLOSE = {"other_ranks": 1e-5, "other_method": 2e-5}
"""Distances by norm: sums in another order are rounded differently, which Adam makes the more of the smaller a gradient
is."""
SHARES = {2: (slice(0, 3), slice(3, 8)), 3: (slice(0, 3), slice(3, 4), slice(4, 8))}


def main(model: str, folder: str, task: str) -> None:
    """Raises AssertionError on a rank whose weights differ."""
    sharding = sharding_from_environment(os.environ)
    accelerator = start_accelerator(sharding)
    ranks = accelerator.num_processes
    prompts = SHARES[ranks][accelerator.process_index]
    for run in RUNS:
        place = Path(folder) / run.name.replace(" ", "-")
        if task == "write":
            learner, algorithm = make(run, model, place, sharding)
            steps(learner, algorithm, run, prompts, 1, 2)
            save(learner, place)
            steps(learner, algorithm, run, prompts, 3, 4)
            straight = weights_of(learner)
            if accelerator.is_main_process:
                save_file(straight, place / "end.safetensors")
        dist.barrier()
        straight = load_file(place / "end.safetensors")
        again, algorithm = make(run, model, place, sharding)
        if task != "write" and run.optimizer == "frugal":
            try:
                load(again, place)
            except BoundState as error:
                assert "resume with 2 ranks" in str(error)
                continue
            raise AssertionError("FRUGAL's state went to other shards")
        load(again, place)
        steps(again, algorithm, run, prompts, 3, 4)
        for name, tensor in weights_of(again).items():
            if task == "write":
                assert torch.equal(tensor, straight[name]), (run.name, name)
                continue
            distance = float((tensor - straight[name]).norm() / straight[name].norm())
            assert distance < CLOSE[task], f"{run.name}: {name} differs by {distance:.1e}"
    dist.barrier()
    dist.destroy_process_group()


def steps(learner: Learner, algorithm: Any, run: Run, prompts: slice, first: int, last: int) -> None:
    for step in range(first, last + 1):
        learner.update(algorithm.prepare(samples_of(run, prompts), learner), algorithm, step)


def save(learner: Learner, folder: Path) -> None:
    shards = learner.state.shards()
    stretches = (stretch for part, weights in shards.items() for stretch in stretches_of(part, weights))
    optimizer, weights = learner.state.optimizer(), learner.state.tensors()
    save_sharded_checkpoint(folder, Checkpoint({"step": 2, "config": {}}, weights, optimizer, []), stretches)


def load(learner: Learner, folder: Path) -> None:
    checkpoint = load_checkpoint(folder / "step-000002")
    learner.state.load_tensors(checkpoint.weights)
    learner.state.load_optimizer(checkpoint.optimizer)
    learner.updates = 2
    reader = ShardReader(checkpoint.shards)
    for part, weights in learner.state.shards().items():
        load_stretches(part, weights, reader)


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in learner.policy_weights()}


if __name__ == "__main__":
    main(*sys.argv[1:])

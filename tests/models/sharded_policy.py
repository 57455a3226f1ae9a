"""Run by torchrun: does a policy sharded with FSDP2 give the gradients of the whole one? Argument: a checkpoint."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rlhf.config.model import ModelConfig
from rlhf.models.loading import load_policy
from rlhf.models.packing import TrainingSequence, pack


def main(path: str) -> None:
    """Raises AssertionError on a rank whose gradients or gathered weights differ."""
    dist.init_process_group("gloo")
    world = dist.get_world_size()
    sequences = [
        TrainingSequence((3, 4, 5), (6, 7, 8)),
        TrainingSequence((3, 4, 5), (9,)),
        TrainingSequence((11, 4), (6, 7, 8, 9)),
    ]
    config = ModelConfig(path=path, dtype="float32")
    whole, sharded = load_policy(config), load_policy(config)
    expected = whole(pack(sequences), _objective)
    expected.loss.backward()
    mesh = init_device_mesh("cpu", (world,))
    for layer in sharded.causal_lm.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    for elementwise in (True, False):
        sharded.zero_grad()
        # the second rank has nothing to learn from, and takes part all the same
        mine = sequences if dist.get_rank() == 0 else []
        output = sharded(pack(mine), _objective, elementwise=elementwise)
        output.loss.backward()
        if mine:
            torch.testing.assert_close(output.loss.detach(), expected.loss.detach())
        for (name, part), parameter in zip(sharded.named_parameters(), whole.parameters(), strict=True):
            # FSDP averages over ranks
            gradient = part.grad.full_tensor() * world
            torch.testing.assert_close(gradient, parameter.grad, msg=lambda text, name=name: f"{name}: {text}")
    gathered = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    if dist.get_rank() == 0:
        for (name, tensor), (_, wanted) in zip(sharded.weights(gathered), whole.weights(), strict=True):
            assert torch.equal(tensor, wanted), name
    dist.destroy_process_group()


def _objective(logp_n: torch.Tensor, entropy_n: torch.Tensor, rows: slice) -> torch.Tensor:
    return logp_n + 0.1 * entropy_n


if __name__ == "__main__":
    main(sys.argv[1])

"""Weights, gradients and optimizer state in shards of rows, gathered layer by layer while they are computed with:
torch's `fully_shard` (FSDP2)."""

import os
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf.config.division import division_from_environment
from rlhf.models.policy import Policy
from rlhf.optim.layout import Pieces, local_flat, pieces_of
from rlhf.training.collectives import sum_tensor
from rlhf.training.weights.master import BuildOptimizer, MasterWeights


def shard(policy: Policy, device: torch.device, compute_dtype: torch.dtype | None = None) -> None:
    """Shard a policy over all ranks, in place. `compute_dtype`: what its weights are gathered in, as they are if None.

    Accelerate's settings `fsdp_reshard_after_forward` and `fsdp_offload_params` hold. Collective.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    division = division_from_environment(os.environ)
    settings = {
        "mesh": mesh,
        # what leaves the forward is float32 already, and ids are not to be cast
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        ),
        "offload_policy": CPUOffloadPolicy() if division.is_on_host else OffloadPolicy(),
    }
    for layer in policy.causal_lm.get_decoder().layers:
        fully_shard(layer, reshard_after_forward=not division.keeps_gathered, **settings)
    # embeddings and LM head too: a forward without a backward would leave old weights behind
    fully_shard(policy, reshard_after_forward=True, **settings)
    # losses have their one denominator already: gradients are added, not averaged
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


class Fsdp2Weights(MasterWeights):
    """As `MasterWeights`, of a policy that `shard` has sharded: its parameters are the masters, and each rank has its
    rows."""

    is_sharded = True

    def __init__(self, module: nn.Module, named_parameters: dict[str, nn.Parameter], build: BuildOptimizer) -> None:
        super().__init__(module, named_parameters, build, copies=False)

    def reduce_gradients(self) -> None:
        """FSDP2 has summed them, micro-batch by micro-batch."""
        self.fill_missing_gradients()

    def gradients(self) -> list[Tensor]:
        return [gradient.to_local() for gradient in super().gradients()]

    def gradient_norm(self) -> float:
        squares = [gradient.float().square().sum(dtype=torch.float64) for gradient in self.gradients()]
        return float(sum_tensor(torch.stack(squares).sum()).sqrt())

    def buffers(self) -> Iterator[tuple[Tensor, Tensor, Pieces]]:
        """(what the optimizer's state is kept under, this rank's elements, where they belong) of each master."""
        for name, master in zip(self.names, self.masters, strict=True):
            yield master, local_flat(master.detach()), pieces_of(master, name)

    def non_finite_names(self) -> list[str]:
        pairs = zip(self.names, self.masters, strict=True)
        return [name for name, master in pairs if not bool(master.to_local().isfinite().all())]

    @torch.no_grad()
    def overwrite(self, values: Mapping[str, Tensor]) -> None:
        for name, master in zip(self.names, self.masters, strict=True):
            if name in values:
                master.copy_(_placed(values[name], master))
        self.publish()

    def publish(self) -> None:
        """Drop what layers have gathered: after a forward without a backward that may be the weights before."""
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def whole(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor]:
        return GatheredTensors(parameters)


class GatheredTensors(Mapping[str, Tensor]):
    """Sharded tensors by name, each gathered when it is looked up, and not kept. Collective."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return whole_tensor(self.tensors[name].detach())

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def whole_tensor(tensor: Tensor) -> Tensor:
    """Gathered where it is sharded (collective), else itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_whole(values: Mapping[str, Tensor], module: nn.Module) -> None:
    """Whole tensors by name into the parameters of a module that may be sharded. Collective where either is."""
    for name, parameter in module.named_parameters():
        value = values[name]
        parameter.copy_(_placed(value, parameter) if isinstance(parameter, DTensor) else value)


def _placed(value: Tensor, like: DTensor) -> DTensor:
    if isinstance(value, DTensor):
        return value
    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)

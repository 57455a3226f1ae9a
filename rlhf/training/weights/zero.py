"""Weights, gradients and optimizer state in flat partitions: DeepSpeed ZeRO, stages 1 to 3."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.config.trained_memory import REDUCE_BUCKET
from rlhf.models.policy import Policy
from rlhf.optim.layout import Pieces, attached
from rlhf.optim.zero import attach_zero_layout
from rlhf.training.collectives import rank_of_world, sum_tensor
from rlhf.training.weights.master import BuildOptimizer

FROM_THE_LAUNCH = (
    "offload_optimizer", "offload_param", "overlap_comm", "contiguous_gradients", "reduce_bucket_size",
    "allgather_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
    "stage3_max_live_parameters", "stage3_max_reuse_distance", "sub_group_size",
)  # fmt: skip
"""Settings of DeepSpeed's `zero_optimization` section that are taken over from Accelerate's configuration."""


class ZeroWeights:
    """What `MasterWeights` does, by a DeepSpeed engine over `policy`, which is partitioned in place.

    `zero`: DeepSpeed's section `zero_optimization`. DeepSpeed averages gradients over ranks, clips and divides by
    numbers of micro-batches on its own; here it is told not to, as a loss has its one denominator already.
    """

    is_sharded = True

    def __init__(
        self, policy: Policy, named_parameters: dict[str, nn.Parameter], build: BuildOptimizer, zero: Mapping[str, Any]
    ) -> None:
        import deepspeed

        # DeepSpeed calls what newer versions of torch name otherwise, in each of its collective operations
        warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
        self.names, self.parameters = list(named_parameters), list(named_parameters.values())
        self.stage = int(zero["stage"])
        self.ranks = rank_of_world()[1]
        self.policy = policy
        is_low = any(parameter.dtype == torch.bfloat16 for parameter in policy.parameters())
        trained = sum(parameter.numel() for parameter in self.parameters)
        self.engine, *_ = deepspeed.initialize(
            model=policy, optimizer=build(named_parameters), config=_config(zero, is_low, trained)
        )
        if self.stage == 3:
            # used in the policy's forward, outside of its own module's
            head = policy.causal_lm.get_output_embeddings()
            for parameter in head.parameters():
                deepspeed.zero.register_external_parameter(policy, parameter)
        attach_zero_layout(self.engine)
        self.module: nn.Module = self.engine
        self.zero = self.engine.optimizer
        # DeepSpeed has another optimizer for stage 1 with bfloat16 weights: every rank has the whole float32 gradient
        self.has_whole_gradients = hasattr(self.zero, "fp32_groups_gradient_flat_partition")

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The one that was given to DeepSpeed: its groups' learning rates may be set."""
        return self.zero.optimizer

    def new_optimizer(self) -> None:
        """Forget the optimizer's state."""
        self.optimizer.state.clear()

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """As of `MasterWeights`. Collective."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(loss * self.ranks)

    def reduce_gradients(self) -> None:
        """DeepSpeed has summed them."""

    def gradients(self) -> list[Tensor]:
        """This rank's partitions; padding is 0."""
        if self.has_whole_gradients:
            return list(self.zero.fp32_groups_gradient_flat_partition)
        if self._is_offloaded:
            return [flat.grad for flat in self.partitions() if flat.grad is not None]
        return [part for parts in self.zero.averaged_gradients.values() for part in parts or ()]

    def gradient_norm(self) -> float:
        square = torch.zeros((), dtype=torch.float64, device=self.engine.device)
        for part in self.gradients():
            square += part.float().square().sum(dtype=torch.float64)
        return float(sum_tensor(square).sqrt())

    @torch.no_grad()
    def scale_gradients(self, factor: float) -> None:
        if factor != 1:
            for part in self.gradients():
                part.mul_(factor)

    def has_finite_gradients(self) -> bool:
        return all(bool(part.isfinite().all()) for part in self.gradients())

    def zero_gradients(self) -> None:
        """Also of a backward pass whose step is not taken, as DeepSpeed itself does it where one overflows."""
        self.zero.zero_grad(set_to_none=True)
        if self.has_whole_gradients:
            return
        if self._is_offloaded:
            self.zero.reset_cpu_buffers()
            for flat in self.partitions():
                if flat.grad is not None:
                    flat.grad.zero_()
        elif self.stage == 3:
            self.zero.averaged_gradients = {}
        else:
            for group in self.zero.averaged_gradients:
                self.zero.averaged_gradients[group] = None
                self.zero.all_grad_tensors[group] = None

    def step(self) -> None:
        """As of `MasterWeights`. Collective."""
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.step()

    def non_finite_names(self) -> list[str]:
        found = set()
        for _, flat, layout in self.buffers():
            for piece in layout.pieces:
                if not bool(flat[piece.offset : piece.offset + piece.numel].isfinite().all()):
                    found.add(piece.name)
        return sorted(found)

    def partitions(self) -> list[Tensor]:
        """The flat float32 masters that the optimizer steps on."""
        if self.has_whole_gradients:
            return list(self.zero.fp32_groups_flat_partition)
        if self.stage == 3:
            return list(self.zero.fp32_partitioned_groups_flat)
        return list(self.zero.single_partition_of_fp32_groups)

    @torch.no_grad()
    def overwrite(self, values: Mapping[str, Tensor]) -> None:
        """As of `MasterWeights`. Collective."""
        for _, flat, layout in self.buffers():
            for piece in layout.pieces:
                if piece.name in values:
                    part = values[piece.name].reshape(-1)[piece.start : piece.start + piece.numel]
                    flat[piece.offset : piece.offset + piece.numel].copy_(part)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """The policy's weights follow the masters. Collective."""
        if self.stage < 3:
            self.zero.update_lp_params()
            if self.has_whole_gradients:
                return
            for group in range(len(self.zero.bit16_groups)):
                self.zero._update_model_bit16_weights(group)
            return
        self.zero._partition_all_parameters()
        for group in range(len(self.zero.fp16_groups)):
            self.zero._reassign_or_swap_out_partitioned_parameters(group)
        if self.zero.persistent_parameters:
            self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)

    def whole(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor]:
        """As of `MasterWeights`."""
        return parameters if self.stage < 3 else PartitionedTensors(parameters)

    def buffers(self) -> Iterator[tuple[Tensor, Tensor, Pieces]]:
        """As of `Fsdp2Weights`, of each flat partition."""
        for flat in self.partitions():
            yield flat, flat.detach(), attached(flat)

    @property
    def _is_offloaded(self) -> bool:
        return bool(getattr(self.zero, "offload_optimizer" if self.stage == 3 else "cpu_offload", False))


class PartitionedTensors(Mapping[str, Tensor]):
    """Parameters that ZeRO-3 has partitioned, each gathered on a copy when it is looked up. Collective."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters

    def __getitem__(self, name: str) -> Tensor:
        import deepspeed

        parameter = self.parameters[name]
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)


def _config(zero: Mapping[str, Any], is_low_precision: bool, trained: int) -> dict[str, Any]:
    # DeepSpeed allocates its bucket whole: for adapters or a small model it would be the largest thing there is
    bucket = {"reduce_bucket_size": min(trained, REDUCE_BUCKET)}
    kept = {name: zero[name] for name in FROM_THE_LAUNCH if zero.get(name) not in (None, "auto")}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": is_low_precision},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {"stage": int(zero["stage"])} | bucket | kept,
    }

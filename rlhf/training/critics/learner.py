"""The critic's side of an actor-critic: values of states, and steps towards their targets, under one denominator."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.algorithms.generalised_advantages import value_loss
from rlhf.config.ppo import CriticConfig
from rlhf.config.recipe import RecipeConfig
from rlhf.config.sharding import Sharding
from rlhf.data.seeds import derive_seed
from rlhf.models.packing import PackedBatch, TrainingSequence, pack
from rlhf.models.policy import Policy
from rlhf.models.value_head import ValueHead
from rlhf.training.checkpoint import part_of, prefixed
from rlhf.training.collectives import sum_gradients, sum_numbers
from rlhf.training.even_batches import rank_micro_batches
from rlhf.training.guards import TrainingStopped
from rlhf.training.optimizers import build_optimizer, keeps_master_copies
from rlhf.training.schedule import learning_rate_factor
from rlhf.training.weights.build import Weights, make_weights
from rlhf.training.weights.master import clip_factor
from rlhf.training.weights.sharded_state import group_settings, load_group_settings

HEAD, TRUNK = "head.", "trunk."


class CriticLearner:
    """Owns the value head, its trunk where that is the critic's own, and their optimizers. Collective over ranks.

    `trunk`: the policy, whose states are then read without a gradient, or a model of the critic's own
    (`trains_trunk`).
    """

    def __init__(
        self, trunk: Policy, config: RecipeConfig, settings: CriticConfig, accelerator: Accelerator, *,
        trains_trunk: bool, sharding: Sharding = "ddp",
    ) -> None:  # fmt: skip
        self.trunk, self.config, self.settings, self.trains_trunk = trunk, config, settings, trains_trunk
        self.device = accelerator.device
        self.head = ValueHead(trunk.config.get_text_config().hidden_size, settings.bounds).to(self.device)
        self.is_sharded = sharding != "ddp"
        self.weights = self._trunk_weights(accelerator, sharding) if trains_trunk else None
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "head": torch.optim.AdamW(self.head.parameters(), lr=settings.head_lr, weight_decay=0.0)
        }
        if self.weights is not None:
            self.optimizers["trunk"] = self.weights.optimizer
        self.peaks = {n: [group["lr"] for group in o.param_groups] for n, o in self.optimizers.items()}
        self.updates = 0
        self.total_updates = config.batch.steps * config.batch.minibatches * settings.epochs
        self.metrics: dict[str, float] = {}

    def values(self, sequences: Sequence[TrainingSequence]) -> list[tuple[float, ...]]:
        """V of the state before each target, by sequence."""
        result: list[tuple[float, ...]] = [()] * len(sequences)
        self.trunk.eval()
        with torch.no_grad():
            for members in self._micro_batches(sequences):
                part = [sequences[index] for index in members]
                value_N = self._forward(pack(part).to(self.device))
                for index, values in zip(members, value_N.split([s.targets for s in part]), strict=True):
                    result[index] = tuple(values.tolist())
        return result

    def update(
        self, sequences: Sequence[TrainingSequence], targets: Sequence[Sequence[float]],
        old_values: Sequence[Sequence[float]],
    ) -> None:  # fmt: skip
        """`epochs` passes of steps towards `targets`, one for each target token; `metrics` then holds the first
        pass's loss and how much of the targets' variance the old values explain.

        Raises TrainingStopped at a non-finite loss or gradient.
        """
        batch, losses = self.config.batch, []
        for epoch in range(self.settings.epochs):
            generator = torch.Generator().manual_seed(derive_seed(self.config.run.seed, "critic", self.updates))
            has_order = batch.minibatches > 1
            order = torch.randperm(len(sequences), generator=generator).tolist() if has_order else range(len(sequences))
            for part in range(batch.minibatches):
                members = order[part :: batch.minibatches]
                loss = self._optimizer_step(
                    [sequences[i] for i in members], [targets[i] for i in members], [old_values[i] for i in members]
                )
                if epoch == 0:
                    losses.append(loss)
        self.metrics = {"critic/loss": sum(losses) / len(losses), **self._fit(targets, old_values)}

    def state_tensors(self) -> dict[str, Tensor]:
        """Trunk masters, where they are whole, and head by name."""
        trunk = {} if self.weights is None or self.is_sharded else self.weights.state_dict()
        return prefixed(HEAD, self.head.state_dict()) | prefixed(TRUNK, trunk)

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """What `state_tensors` gave."""
        self.head.load_state_dict(part_of(tensors, HEAD))
        if self.weights is not None and not self.is_sharded:
            self.weights.load_state_dict(part_of(tensors, TRUNK))

    def sharded_weights(self) -> dict[str, Weights]:
        """What each rank has a part of."""
        return {"critic": self.weights} if self.weights is not None and self.is_sharded else {}

    def optimizer_state(self) -> dict[str, Any]:
        """Of each optimizer by name, and the number of steps."""
        return {"updates": self.updates} | {
            name: group_settings(each) if self._is_in_shards(name) else each.state_dict()
            for name, each in self.optimizers.items()
        }

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """What `optimizer_state` gave."""
        self.updates = state["updates"]
        for name, optimizer in self.optimizers.items():
            if self._is_in_shards(name):
                load_group_settings(optimizer, state[name])
            else:
                optimizer.load_state_dict(state[name])

    def _optimizer_step(
        self, sequences: Sequence[TrainingSequence], targets: Sequence[Sequence[float]],
        old_values: Sequence[Sequence[float]],
    ) -> float:  # fmt: skip
        """The mean loss over all tokens of all ranks."""
        tokens = sum_numbers({"tokens": sum(s.targets for s in sequences)}, self.device)["tokens"]
        self._zero_gradients()
        if self.trains_trunk:
            self.trunk.train()
        loss = 0.0
        batches = self._micro_batches(sequences)
        for place, members in enumerate(batches):
            part = [sequences[index] for index in members]
            value_N = self._forward(pack(part).to(self.device))
            target_N, old_N = (self._flat([values[i] for i in members]) for values in (targets, old_values))
            summed = value_loss(value_N, target_N, old_N, self.settings.loss_clip).sum() / max(tokens, 1)
            if self.weights is None:
                summed.backward()
            else:
                self.weights.backward(summed, is_last=place == len(batches) - 1)
            loss += float(summed.detach())
        parameters = list(self.head.parameters())
        sum_gradients(parameters)
        norm = float(nn.utils.get_total_norm([parameter.grad for parameter in parameters]))
        if self.weights is not None:
            self.weights.reduce_gradients()
            norm = math.hypot(norm, self.weights.gradient_norm())
        factor = clip_factor(norm, self.config.batch.max_grad_norm)
        for parameter in parameters:
            parameter.grad.mul_(factor)
        loss = sum_numbers({"loss": loss}, self.device)["loss"]
        if not (torch.isfinite(torch.tensor([loss, norm])).all()):
            raise TrainingStopped(
                f"the critic's loss is {loss} and its gradient's norm {norm}: lower algorithm.critic.optimizer.lr and "
                "head_lr, or set algorithm.critic.bounds to the range of the returns. The last checkpoint is untouched"
            )
        lr_factor = learning_rate_factor(self.updates, self.total_updates, self.config.schedule)
        if self.weights is not None:
            self.weights.scale_gradients(factor)
        for name, optimizer in self.optimizers.items():
            for group, peak in zip(optimizer.param_groups, self.peaks[name], strict=True):
                group["lr"] = peak * lr_factor
            (self.weights if name == "trunk" else optimizer).step()
        self._zero_gradients()
        self.updates += 1
        return loss

    def _forward(self, packed: PackedBatch) -> Tensor:
        if self.weights is not None:
            return self.head(self.weights.module(packed, task=self.trunk.final_states))
        return self.head(self.trunk.frozen_hidden(packed))

    def _trunk_weights(self, accelerator: Accelerator, sharding: Sharding) -> Weights:
        named, settings = dict(self.trunk.named_parameters()), self.settings.optimizer
        # the LM head takes no part; where it is tied to the embeddings it is not among the named parameters
        output = self.trunk.causal_lm.get_output_embeddings().weight
        if output is not self.trunk.causal_lm.get_input_embeddings().weight:
            output.requires_grad_(False)
        named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        seed = derive_seed(self.config.run.seed, "critic")

        def build(masters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
            return build_optimizer(settings, self.trunk, masters, seed)

        copies = keeps_master_copies(settings)
        return make_weights(self.trunk, named, build, accelerator, sharding, copies=copies)

    def _micro_batches(self, sequences: Sequence[TrainingSequence]) -> list[list[int]]:
        budget = self.config.batch.tokens_per_micro_batch
        return rank_micro_batches(sequences, budget, self.device, is_even=self.is_sharded)

    def _is_in_shards(self, optimizer: str) -> bool:
        return self.is_sharded and optimizer == "trunk"

    def _zero_gradients(self) -> None:
        if self.weights is not None:
            self.weights.zero_gradients()
        self.head.zero_grad(set_to_none=True)

    def _flat(self, rows: Sequence[Sequence[float]]) -> Tensor:
        return torch.tensor([value for row in rows for value in row], dtype=torch.float32, device=self.device)

    def _fit(self, targets: Sequence[Sequence[float]], values: Sequence[Sequence[float]]) -> dict[str, float]:
        """How the values that the advantages were made of met the returns: over all tokens of all ranks."""
        target_N, value_N = self._flat(targets).double(), self._flat(values).double()
        errors_N = target_N - value_N
        sums = sum_numbers(
            {
                "tokens": len(target_N), "target": float(target_N.sum()), "squared": float(target_N.square().sum()),
                "value": float(value_N.sum()), "error": float(errors_N.sum()),
                "squared_error": float(errors_N.square().sum()),
            },
            self.device,
        )  # fmt: skip
        count = max(sums["tokens"], 1)
        variance = sums["squared"] / count - (sums["target"] / count) ** 2
        left = sums["squared_error"] / count - (sums["error"] / count) ** 2
        explained = {"critic/explained_variance": 1 - left / variance} if variance > 1e-12 else {}
        return {"critic/value_mean": sums["value"] / count, "critic/target_mean": sums["target"] / count, **explained}

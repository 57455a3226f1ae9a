"""What a checkpoint holds of a learner: weights, optimizer, the reference where that has moved, and the critic."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rlhf.models.policy import Policy
from rlhf.training.algorithm import Critic
from rlhf.training.checkpoint import part_of, prefixed
from rlhf.training.weights.build import Weights
from rlhf.training.weights.fsdp2 import GatheredTensors, copy_whole
from rlhf.training.weights.sharded_state import group_settings, load_group_settings

REFERENCE_PREFIX = "reference."
CRITIC_PREFIX = "critic."
"""In checkpoints, before the names of the reference's parameters, and of what the critic keeps."""


class LearnerState:
    """Reads and writes what it was given. `reference_has_moved`: it is no longer the starting checkpoint. All methods
    are collective over ranks."""

    def __init__(self, weights: Weights, reference: Policy | None, critic: Critic | None) -> None:
        self.weights, self.reference, self.critic = weights, reference, critic
        self.reference_has_moved = False

    def tensors(self) -> dict[str, Tensor]:
        """Master weights by name, where they are whole; a reference that is no longer the starting checkpoint; and the
        critic's weights. Collective where weights are sharded."""
        moved = dict(GatheredTensors(dict(self.reference.named_parameters()))) if self.reference_has_moved else {}
        of_critic = {} if self.critic is None else self.critic.state_tensors()
        own = {} if self.weights.is_sharded else self.weights.state_dict()
        return own | prefixed(REFERENCE_PREFIX, moved) | prefixed(CRITIC_PREFIX, of_critic)

    def shards(self) -> dict[str, Weights]:
        """What each rank has a part of, by name."""
        of_critic = {} if self.critic is None else self.critic.sharded_weights()
        return ({"policy": self.weights} if self.weights.is_sharded else {}) | of_critic

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """What `tensors` gave."""
        moved, of_critic = (part_of(tensors, prefix) for prefix in (REFERENCE_PREFIX, CRITIC_PREFIX))
        others = (REFERENCE_PREFIX, CRITIC_PREFIX)
        if not self.weights.is_sharded:
            self.weights.load_state_dict({n: t for n, t in tensors.items() if not n.startswith(others)})
        if self.critic is not None:
            self.critic.load_state_tensors(of_critic)
        if moved:
            self.reference_has_moved = True
            copy_whole(moved, self.reference)

    def optimizer(self) -> dict[str, Any]:
        """Of the policy's optimizer, but for what is sharded, and under `critic` of the critic's."""
        optimizer = self.weights.optimizer
        own = {"groups": group_settings(optimizer)} if self.weights.is_sharded else optimizer.state_dict()
        return own if self.critic is None else own | {"critic": self.critic.optimizer_state()}

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        """What `optimizer` gave."""
        if self.weights.is_sharded:
            load_group_settings(self.weights.optimizer, state["groups"])
        else:
            self.weights.optimizer.load_state_dict({name: value for name, value in state.items() if name != "critic"})
        if self.critic is not None:
            self.critic.load_optimizer_state(state["critic"])

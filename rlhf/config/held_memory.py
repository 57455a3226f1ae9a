"""What a rank holds beside the policy and its engine: reward models, the optimistic critics' ensemble, its episodes."""

from typing import Any

from rlhf.config.critic_ensemble import EnsembleConfig
from rlhf.config.memory_items import BYTES, GIB, MemoryItem, item
from rlhf.config.model_shapes import ModelShape, UnknownShape, find_shape
from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.config.rewards import RewardModelConfig

# of the critic's network (as rlhf/models/frozen_state_critic.py and rlhf/training/critics/forms.py)
NETWORK_WIDTH = 256
TOKEN_FEATURES = 64
NETWORKS = 3
"""The one that learns, its slow copy, and the one that guides the policy."""


def reward_model_items(config: Any) -> list[MemoryItem]:
    """One line for each reward model, which every rank holds whole."""
    return [
        _reward_model(f"reward model {index}", function)
        for index, function in enumerate(config.rewards.functions)
        if isinstance(function, RewardModelConfig)
    ]


def _reward_model(name: str, function: RewardModelConfig) -> MemoryItem:
    try:
        shape = find_shape(function.path, function.revision)
    except UnknownShape as error:
        return MemoryItem(name, 0, f"not counted, its sizes are unknown: {error}")
    b = BYTES[function.dtype]
    # one label in place of the vocabulary: what a tied head is, the embedding, stays
    head = 0 if shape.is_tied else shape.vocabulary * shape.hidden
    amount = (shape.parameters - head) * b + shape.hidden * BYTES["float32"]
    return item(name, amount, f"its backbone's weights x {b}: {function.path}")


def ensemble_items(config: Any, shape: ModelShape) -> list[MemoryItem]:
    """The optimistic critic and, in host memory, what it remembers."""
    algorithm = config.algorithm
    if not isinstance(algorithm, OptimisticConfig):
        return []
    ensemble = algorithm.ensemble
    trained, priors = ensemble_numbers(ensemble, shape.hidden)
    # gradients and AdamW's two moments of the one that learns
    amount = 4 * (trained * (NETWORKS + 3) + priors * NETWORKS)
    if ensemble.values_tokens:
        amount += 4 * shape.vocabulary * TOKEN_FEATURES
    return [
        item("critic ensemble", amount, f"{ensemble.members} members, {NETWORKS} copies, optimizer state; float32"),
        item("the critic's episodes", ensemble.buffer_gib * GIB, "at most: ensemble.buffer_gib", "host"),
    ]


def ensemble_numbers(ensemble: EnsembleConfig, hidden: int) -> tuple[int, int]:
    """Of one network: (trained, of the fixed priors)."""
    members, tokens = ensemble.members, TOKEN_FEATURES if ensemble.values_tokens else 0
    network = 2 * hidden + (hidden + 1) * NETWORK_WIDTH
    return network + members * (NETWORK_WIDTH * (1 + tokens) + 1), members * hidden * (1 + tokens)

"""The engine gets the learner's weights, and proves that it computes with them."""

import torch

from rlhf.models.policy import Policy
from rlhf.rollouts.engine import Engine
from rlhf.rollouts.weights import compare_checksums, weight_checksums
from rlhf.training.guards import TrainingStopped


def sync_weights(policy: Policy, engine: Engine, version: int) -> None:
    """Push all weights, then compare checksums. Raises TrainingStopped where the engine holds something else."""
    engine.load_weights(policy.weights(), version)
    verify_weights(policy, engine, version)


def verify_weights(policy: Policy, engine: Engine, version: int) -> None:
    """Raises TrainingStopped naming the parameters whose values in the engine are not the learner's."""
    dtype: torch.dtype = engine.dtype
    differences = compare_checksums(weight_checksums(policy.weights(), dtype), engine.checksums())
    if differences:
        shown = "\n  ".join(differences[:8])
        raise TrainingStopped(
            f"after the weight sync of version {version} the engine does not hold the learner's weights "
            f"({len(differences)} parameters differ):\n  {shown}\nThe run stops before it learns from another policy's samples"
        )

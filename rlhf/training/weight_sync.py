"""The engine gets the learner's weights, and proves that it computes with them."""

from collections.abc import Iterable, Iterator

import torch

from rlhf.rollouts.engine import Engine
from rlhf.rollouts.weights import compare_checksums, tensor_checksum
from rlhf.training.guards import TrainingStopped


def sync_weights(weights: Iterable[tuple[str, torch.Tensor]], engine: Engine, version: int) -> None:
    """Push (HF name, tensor) pairs, all of the model's, then compare checksums. Raises TrainingStopped where the engine
    holds something else.

    The weights are walked once: merging adapters is the costly part of it.
    """
    sent: dict[str, str] = {}

    def checksummed() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            sent[name] = tensor_checksum(tensor, engine.dtype)
            yield name, tensor

    engine.load_weights(checksummed(), version)
    differences = compare_checksums(sent, engine.checksums())
    if differences:
        shown = "\n  ".join(differences[:8])
        raise TrainingStopped(
            f"after the weight sync of version {version} the engine does not hold the learner's weights "
            f"({len(differences)} parameters differ):\n  {shown}\n"
            "The run stops before it learns from another policy's samples"
        )

"""Micro-batches of this rank, and as many on every rank where each forward pass is a collective operation."""

from collections.abc import Sequence

import torch

from rlhf.models.micro_batches import even_out, micro_batches
from rlhf.models.sequences import TrainingSequence
from rlhf.training.collectives import maximum


def rank_micro_batches(
    sequences: Sequence[TrainingSequence], token_budget: int, device: torch.device, *, is_even: bool
) -> list[list[int]]:
    """Indices of sequences by micro-batch. `is_even`: ranks with fewer get empty ones, and at least one is made;
    collective then."""
    batches = micro_batches(sequences, token_budget)
    if not is_even:
        return batches
    # an optimizer step is a step of all ranks, even where nobody has anything to learn from
    return even_out(batches, maximum(max(len(batches), 1), device))

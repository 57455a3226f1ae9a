"""One denominator per optimizer step. The only place where a loss is divided by anything.

A loss is a sum over tokens of weight * loss. The weight of a token depends on its own sequence and on totals of the
whole optimizer step (all micro-batches, all ranks), so any split of the same samples gives the same gradient.
"""

from dataclasses import dataclass
from typing import Literal

Denominator = Literal["token", "sequence", "constant"]


@dataclass(frozen=True, slots=True)
class StepTotals:
    """What one optimizer step counts over all ranks: sequences and tokens in the loss, also those whose gradient is
    known to be 0."""

    sequences: int
    tokens: int


def token_weight(length: int, totals: StepTotals, denominator: Denominator, max_tokens: int) -> float:
    """Weight of each of a sequence's `length` tokens.

    token: 1 / tokens (DAPO). sequence: 1 / (sequences * length), the mean over sequences of the mean over tokens
    (GRPO).
    constant: 1 / (sequences * max_tokens) (Dr.GRPO).
    """
    if length == 0 or totals.sequences == 0:
        return 0.0
    if denominator == "token":
        return 1.0 / totals.tokens
    if denominator == "sequence":
        return 1.0 / (totals.sequences * length)
    return 1.0 / (totals.sequences * max_tokens)

"""Which of the policy's tokens earned what."""

import math
from itertools import accumulate

from rlhf.data.types import Sample


def own_token_rewards(sample: Sample, turn_weight: float) -> list[float]:
    """For each token of the policy: at the end of a turn what the environment paid for it, times `turn_weight`, and the
    rest of the sample's reward at the last token.

    Raises ValueError for a sample without a reward.
    """
    if sample.reward is None:
        raise ValueError(f"sample {sample.id!r} has no reward: score it before preparing a batch")
    rewards = [0.0] * sample.own_tokens
    paid = [turn_weight * reward for reward in sample.turn_rewards]
    for end, payment in zip(accumulate(own for own, _ in sample.turns), paid, strict=True):
        rewards[end - 1] += payment
    if rewards:
        rewards[-1] += sample.reward - math.fsum(paid)
    return rewards

"""From advantages of tokens to training samples: what the trainers with a critic share."""

from collections.abc import Sequence

from rlhf.data.types import Sample
from rlhf.training.batch import TrainingSample
from rlhf.training.collectives import sum_numbers
from rlhf.training.learner import Learner

TokenAdvantages = list[tuple[float, ...]]


def with_advantages(
    samples: Sequence[Sample], advantages: TokenAdvantages, references: Sequence[tuple[float, ...] | None], *,
    is_counted: bool, mask_truncated: bool,
) -> list[TrainingSample]:  # fmt: skip
    """Samples to learn from; `is_counted` False: the policy learns from none of them."""
    batch = []
    for sample, advantage_T, reference in zip(samples, advantages, references, strict=True):
        counted = is_counted and not (mask_truncated and sample.truncated)
        mean = sum(advantage_T) / len(advantage_T) if advantage_T else 0.0
        batch.append(TrainingSample(sample, mean, counted, counted, reference, advantages=advantage_T))
    return batch


def whitened(advantages: TokenAdvantages, learner: Learner) -> TokenAdvantages:
    """(A - mean) / std over the tokens of all ranks."""
    flat = [value for row in advantages for value in row]
    sums = sum_numbers({"n": len(flat), "sum": sum(flat), "squares": sum(v * v for v in flat)}, learner.device)
    count = max(sums["n"], 1)
    mean = sums["sum"] / count
    std = max(sums["squares"] / count - mean * mean, 0.0) ** 0.5 + 1e-8
    return [tuple((value - mean) / std for value in row) for row in advantages]

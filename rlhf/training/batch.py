"""What an algorithm hands to the learner: graded samples with their advantages."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from rlhf.algorithms.aggregation import StepTotals
from rlhf.data.types import Sample
from rlhf.models.sequences import TrainingSequence


class MatchTargets(NamedTuple):
    """A distribution for each of a completion's T tokens: over `candidate_id_Tm`, and the rest of the vocabulary in the
    last place of `target_logp_TC`; -inf marks a place without a candidate."""

    candidate_id_Tm: Tensor
    target_logp_TC: Tensor


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """A sample with its advantage. Its tokens are the policy's: of a dialogue the assistant's alone.

    `advantages`: one per token where tokens have their own; `advantage` is then their mean.
    `counted`: it is part of the loss and its denominator (False: masked, e.g. truncated).
    `learned`: it is forwarded (False: its gradient is known to be 0, or it is not counted).
    `reference_logps`: one per token where there is a KL term.
    `match`: the distributions to learn where the loss is of those.
    `group`: samples of one group stay in one minibatch. None: those of one prompt.
    """

    sample: Sample
    advantage: float
    counted: bool = True
    learned: bool = True
    reference_logps: tuple[float, ...] | None = None
    group: tuple[str, int] | None = None
    advantages: tuple[float, ...] | None = None
    match: MatchTargets | None = None

    def __post_init__(self) -> None:
        for name in ("advantages", "reference_logps"):
            values = getattr(self, name)
            if values is not None and len(values) != self.length:
                raise ValueError(
                    f"sample {self.sample.id!r}: {len(values)} {name} for {self.length} tokens of the policy "
                    f"({len(self.sample.completion_ids)} completion ids, {len(self.sample.turns)} turns)"
                )

    @property
    def token_advantages(self) -> tuple[float, ...]:
        """One per token."""
        return (self.advantage,) * self.length if self.advantages is None else self.advantages

    @property
    def length(self) -> int:
        return self.sample.own_tokens

    @property
    def sequence(self) -> TrainingSequence:
        """What the model is given."""
        return training_sequence(self.sample)


def training_sequence(sample: Sample) -> TrainingSequence:
    """Prompt and completion of a sample; the policy's tokens are its targets."""
    return TrainingSequence(sample.prompt.token_ids, sample.completion_ids, sample.turns)


def local_totals(samples: list[TrainingSample]) -> StepTotals:
    """What this rank adds to the denominator."""
    counted = [sample for sample in samples if sample.counted]
    return StepTotals(sequences=len(counted), tokens=sum(sample.length for sample in counted))


def group_by_prompt(samples: list[TrainingSample], samples_per_prompt: int) -> list[list[TrainingSample]]:
    """The samples of each prompt, in order of first appearance.

    By id, not by object: samples read back from a checkpoint do not share their prompt. A prompt that comes twice in a
    batch (the border of two epochs) is two groups: its indices go on counting (rollouts/requests.py).
    """
    groups: dict[tuple[str, int], list[TrainingSample]] = {}
    for sample in samples:
        key = sample.group or (sample.sample.prompt.id, sample.sample.index // samples_per_prompt)
        groups.setdefault(key, []).append(sample)
    return list(groups.values())


def split_minibatches(groups: list[list[TrainingSample]], count: int, order: list[int]) -> list[list[TrainingSample]]:
    """Whole groups, in the given order, dealt into `count` minibatches of equal numbers of groups.

    Raises ValueError where they cannot be dealt equally.
    """
    if len(groups) % count:
        raise ValueError(
            f"{len(groups)} prompts on this rank cannot be dealt into {count} minibatches: change batch.minibatches"
        )
    ordered = [groups[index] for index in order] if count > 1 else groups
    size = len(ordered) // count
    return [[s for group in ordered[i * size : (i + 1) * size] for s in group] for i in range(count)]

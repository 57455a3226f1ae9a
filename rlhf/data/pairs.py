"""Preference pairs from graded groups: which completions of a prompt are set against each other, and how much each
pair counts."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlhf.config.vpo import PairsConfig
from rlhf.data.seeds import derive_seed
from rlhf.data.types import Sample

Strategy = Literal["one", "zip", "all"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt; the chosen one has the higher reward. `weight`: 1 over the prompt's pairs."""

    chosen: Sample
    rejected: Sample
    weight: float

    @property
    def reward_gap(self) -> float:
        """The chosen one's reward less the rejected one's, above 0."""
        return self.chosen.reward - self.rejected.reward


@dataclass(frozen=True, slots=True)
class PairedGroup:
    """The pairs of a prompt, none where all rewards are equal, and how many completions were left out by reason."""

    pairs: list[Pair]
    dropped: Counter[str] = field(default_factory=Counter)


def build_pairs(
    group: Sequence[Sample],
    strategy: Strategy = "zip",
    *,
    seed: int,
    iteration: int = 0,
    max_pairs: int = 4,
    keep_truncated: bool = False,
    max_length_difference: int | None = None,
) -> PairedGroup:
    """Pairs of one prompt's completions by their rewards; draws are a function of (seed, iteration, prompt id).

    one: one of the best against one of the worst. zip: the k-th best against the k-th worst, each completion once; with
    right and wrong ones a random matching. all: every two with different rewards, `max_pairs` of them by lot. Ties are
    no preference and make no pair. Each pair weighs 1 over the pairs of its prompt, so that how hard a prompt is does
    not set its weight.

    Left out: completions without a reward, a text that another one has (the first stays), empty ones; as chosen, those
    that were cut off (`keep_truncated` False); pairs whose lengths differ by more than `max_length_difference` tokens.

    Raises ValueError for an empty group, completions of several prompts, a reward that is not finite, and an unknown
    strategy or a `max_pairs` below 1.
    """
    if strategy not in ("one", "zip", "all"):
        raise ValueError(f"pair strategy is {strategy!r}: choose one, zip or all")
    if max_pairs < 1:
        raise ValueError(f"max_pairs is {max_pairs}: it must be 1 or more")
    if len({sample.prompt.id for sample in group}) != 1:
        ids = ", ".join(sorted({sample.prompt.id for sample in group})[:3]) or "none"
        raise ValueError(f"pairs are of the completions of one prompt, got those of: {ids}")
    dropped: Counter[str] = Counter()
    usable = _usable(group, dropped)
    draw = random.Random(derive_seed(seed, "pairs", iteration, group[0].prompt.id))
    draw.shuffle(usable)
    # sorting is stable: equal rewards stay in the order that was drawn
    usable.sort(key=lambda sample: -sample.reward)

    def is_pair(chosen: Sample, rejected: Sample) -> bool:
        if chosen.reward <= rejected.reward or (chosen.truncated and not keep_truncated):
            return False
        difference = abs(len(chosen.completion_ids) - len(rejected.completion_ids))
        return max_length_difference is None or difference <= max_length_difference

    if strategy == "all":
        found = [(one, other) for one in usable for other in usable if is_pair(one, other)]
        draw.shuffle(found)
    else:
        found = _matched(usable, is_pair)
    found = found[: 1 if strategy == "one" else max_pairs]
    if not found:
        dropped["no_pair"] += 1
    return PairedGroup([Pair(chosen, rejected, 1 / len(found)) for chosen, rejected in found], dropped)


def configured_pairs(group: Sequence[Sample], config: PairsConfig, *, seed: int, iteration: int = 0) -> PairedGroup:
    """`build_pairs` as a configuration says."""
    return build_pairs(
        group, config.strategy, seed=seed, iteration=iteration, max_pairs=config.max_per_prompt,
        keep_truncated=config.keep_truncated, max_length_difference=config.max_length_difference,
    )  # fmt: skip


def _usable(group: Sequence[Sample], dropped: Counter[str]) -> list[Sample]:
    seen: set[tuple[int, ...]] = set()
    usable = []
    for sample in group:
        if sample.reward is None:
            dropped["ungraded"] += 1
        elif not math.isfinite(sample.reward):
            raise ValueError(f"sample {sample.id!r} has reward {sample.reward}: check the reward function")
        elif not sample.completion_ids:
            dropped["empty"] += 1
        elif sample.completion_ids in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(sample.completion_ids)
            usable.append(sample)
    return usable


def _matched(
    usable: Sequence[Sample], is_pair: Callable[[Sample, Sample], bool]
) -> list[tuple[Sample, Sample]]:
    """From the best down, each with the worst that is not taken and makes a pair with it."""
    found, taken = [], set()
    for best, chosen in enumerate(usable):
        worst = next(
            (place for place in reversed(range(best + 1, len(usable)))
             if not taken & {best, place} and is_pair(chosen, usable[place])), None
        )  # fmt: skip
        if worst is not None:
            found.append((chosen, usable[worst]))
            taken |= {best, worst}
    return found

"""A pairwise judge as a reward function: the share of its comparisons with the prompt's other completions that a
completion wins."""

import asyncio
import inspect
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, Literal

from rlhf.config.rewards import JudgeConfig
from rlhf.data.types import Sample
from rlhf.rewards.callables import RewardError, in_thread, load_function

FIRST_WINS = {0: 1.0, 1: 0.0, -1: 0.5, None: 0.5}
"""What the first completion of a pair gets, by the judge's answer: TRL's convention, where -1 is undecided."""


class PairwiseJudge:
    """A user's `judge(prompts, completions) -> list[int]`, called as TRL calls its judges: `completions[i]` are two
    completions of `prompts[i]`, and the answer is the place (0 or 1) of the better one, -1 where there is none."""

    def __init__(self, name: str, config: JudgeConfig) -> None:
        self.name, self.config = name, config
        self.function = load_function(config.path)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """The share of comparisons won, a tie counting half; None for a sample that was compared with none.

        Completions with the same text tie without being shown. Raises RewardError where the judge fails, answers
        something else, or does not return in time.
        """
        pairs = list(comparisons(samples, self.config.comparisons))
        shown = [pair for pair in pairs if samples[pair[0]].text != samples[pair[1]].text]
        if self.config.both_orders:
            shown += [(second, first) for first, second in shown]
        wins: list[list[float]] = [[] for _ in samples]
        for first, second in pairs:
            if samples[first].text == samples[second].text:
                wins[first].append(0.5)
                wins[second].append(0.5)
        for (first, second), won in zip(shown, self._ask(samples, shown), strict=True):
            wins[first].append(won)
            wins[second].append(1 - won)
        return [sum(each) / len(each) if each else None for each in wins]

    def _ask(self, samples: Sequence[Sample], shown: Sequence[tuple[int, int]]) -> list[float]:
        """What the first of each pair gets."""
        if not shown:
            return []
        prompts = [samples[first].prompt.text for first, _ in shown]
        completions = [[samples[place].text for place in pair] for pair in shown]

        def call() -> Any:
            try:
                answers = self.function(prompts=prompts, completions=completions)
                return asyncio.run(_awaited(answers)) if inspect.isawaitable(answers) else answers
            except Exception as error:  # noqa: BLE001 - a user's function may raise anything; it is reported
                return error

        answers = in_thread(self.name, call, self.config.timeout_s, len(shown))
        if isinstance(answers, Exception):
            first, last = samples[shown[0][0]].id, samples[shown[-1][1]].id
            raise RewardError(
                f"judge {self.name} raised {type(answers).__name__}: {answers} "
                f"(asked about {len(shown)} pairs, samples {first!r} to {last!r})"
            ) from answers
        answers = answers.tolist() if hasattr(answers, "tolist") else answers
        if not isinstance(answers, (list, tuple)) or len(answers) != len(shown):
            given = f"{len(answers)} answers" if isinstance(answers, (list, tuple)) else f"a {type(answers).__name__}"
            raise RewardError(f"judge {self.name} returned {given} for {len(shown)} pairs: give one a pair")
        for answer, (first, second) in zip(answers, shown, strict=True):
            if isinstance(answer, float) or answer not in FIRST_WINS:
                raise RewardError(
                    f"judge {self.name} returned {answer!r} for samples {samples[first].id!r} and "
                    f"{samples[second].id!r}: it must be 0 or 1 (the place of the better one), or -1 for a tie"
                )
        return [FIRST_WINS[answer] for answer in answers]


def comparisons(samples: Sequence[Sample], kind: Literal["all", "ring"]) -> Iterator[tuple[int, int]]:
    """Places of samples of one prompt that are compared: every two of them, or each with the next, the last with the
    first."""
    by_prompt: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        by_prompt.setdefault(sample.prompt.id, []).append(place)
    for places in by_prompt.values():
        if kind == "all" or len(places) < 3:
            yield from combinations(places, 2)
        else:
            yield from zip(places, [*places[1:], places[0]], strict=True)


async def _awaited(answers: Any) -> Any:
    return await answers

"""A pairwise judge as a reward: shares of comparisons won, order bias, ties, and answers that are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.rewards import RewardsConfig
from rlhf.data.types import Sample
from rlhf.rewards import RewardError, RewardScorer
from rlhf.rewards.judge import comparisons

JUDGES = """
seen = []
def longer(prompts, completions):
    seen.extend(zip(prompts, completions))
    return [int(len(second) > len(first)) for first, second in completions]
async def longer_later(prompts, completions):
    return longer(prompts, completions)
def first(prompts, completions): return [0] * len(completions)
def undecided(prompts, completions): return [-1] * len(completions)
def few(prompts, completions): return [0]
def likely(prompts, completions): return [0.7] * len(completions)
def third(prompts, completions): return [2] * len(completions)
def breaks(prompts, completions): raise OSError("no connection")
def hangs(prompts, completions):
    import time
    time.sleep(30)
"""
Judge = Callable[..., list[float | None]]


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    """Rewards of samples by a judge of the file, by name."""
    file = tmp_path / "judges.py"
    file.write_text(JUDGES, encoding="utf-8")

    def run(name: str, samples: list[Sample], **settings: Any) -> list[float | None]:
        config = RewardsConfig(functions=[{"type": "judge", "path": f"{file}:{name}"} | settings])
        with RewardScorer(config) as scorer:
            return [sample.rewards[name] for sample in scorer.score(samples)]

    return run


@pytest.mark.parametrize("name", ["longer", "longer_later"])
def test_rewards_are_shares_of_the_comparisons_won(name: str, judge: Judge, make_sample: Any) -> None:
    samples = [make_sample(text, index=i) for i, text in enumerate(["abc", "a", "ab", "abcd"])]
    assert judge(name, samples) == pytest.approx([2 / 3, 0, 1 / 3, 1])


def test_completions_of_different_prompts_are_not_compared(judge: Judge, make_sample: Any) -> None:
    samples = [make_sample(text, id=prompt) for text, prompt in [("abc", "a"), ("a", "b"), ("ab", "a"), ("x", "c")]]
    assert judge("longer", samples) == [1, None, 0, None]


@pytest.mark.parametrize(("both_orders", "rewards"), [(True, [0.5, 0.5]), (False, [1.0, 0.0])])
def test_a_judge_who_favours_a_place_favours_no_completion(
    both_orders: bool, rewards: list[float], judge: Judge, make_sample: Any
) -> None:
    assert judge("first", [make_sample("a"), make_sample("b", index=1)], both_orders=both_orders) == rewards


def test_undecided_comparisons_and_equal_texts_count_half(judge: Judge, make_sample: Any) -> None:
    samples = [make_sample(text, index=i) for i, text in enumerate("aab")]
    assert judge("undecided", samples) == [0.5] * 3
    # equal texts are not shown, so the judge who always takes the first has no say
    assert judge("first", samples[:2], both_orders=False) == [0.5, 0.5]


def test_a_ring_compares_each_with_the_next(make_sample: Any) -> None:
    samples = [make_sample(str(i), index=i) for i in range(4)] + [make_sample("x", id="other")]
    assert list(comparisons(samples, "ring")) == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert list(comparisons(samples[:2], "ring")) == [(0, 1)]
    assert len(list(comparisons(samples, "all"))) == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("few", r"judge few returned 1 answers for 2 pairs"),
        ("likely", r"judge likely returned 0.7 for samples 'sums:7/0' and 'sums:7/1': it must be 0 or 1"),
        ("third", r"judge third returned 2 "),
        ("breaks", r"judge breaks raised OSError: no connection \(asked about 2 pairs, samples 'sums:7/0' to"),
    ],
)
def test_other_answers_are_refused_with_the_samples(name: str, message: str, judge: Judge, make_sample: Any) -> None:
    with pytest.raises(RewardError, match=message):
        judge(name, [make_sample("a"), make_sample("b", index=1)])


def test_a_judge_who_hangs_is_given_up(judge: Judge, make_sample: Any) -> None:
    with pytest.raises(RewardError, match=r"hangs has not returned after 0.2 s"):
        judge("hangs", [make_sample("a"), make_sample("b", index=1)], timeout_s=0.2)

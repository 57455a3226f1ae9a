"""Preference pairs: who is paired, with which weight, what is left out, and that draws depend on nothing else."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.pairs import build_pairs
from rlhf.data.types import Prompt, Sample


def sample(index, reward, ids=None, prompt="p", finish="stop"):
    ids = (index + 1, 9) if ids is None else ids
    return Sample(Prompt(prompt, (1, 2), "q"), index, ids, (-1.0,) * len(ids), finish, 0, 0, reward=reward)


def group(*rewards):
    return [sample(index, reward) for index, reward in enumerate(rewards)]


def indices(found):
    return [(pair.chosen.index, pair.rejected.index) for pair in found.pairs]


# oracle V12
@pytest.mark.parametrize(("strategy", "count"), [("all", 9), ("zip", 3), ("one", 1)])
def test_v12_right_and_wrong(strategy, count):
    found = build_pairs(group(1, 0, 1, 0, 0, 1), strategy, seed=0, max_pairs=100)
    assert len(found.pairs) == len(set(indices(found))) == count
    assert all(chosen in (0, 2, 5) and rejected in (1, 3, 4) for chosen, rejected in indices(found))
    assert all(pair.weight == 1 / count and pair.reward_gap == 1 for pair in found.pairs)
    if strategy == "zip":
        assert len({index for pair in indices(found) for index in pair}) == 6


@pytest.mark.parametrize("strategy", ["one", "zip", "all"])
@pytest.mark.parametrize("rewards", [(1, 1, 1), (0, 0), (1,), (None, None), (1, None)])
def test_no_preference_makes_no_pair(strategy, rewards):
    found = build_pairs(group(*rewards), strategy, seed=0)
    assert found.pairs == [] and found.dropped["no_pair"] == 1


def test_scores_are_paired_from_both_ends():
    found = build_pairs(group(0.1, 0.9, 0.5, 0.3, 0.7), "zip", seed=3)
    assert indices(found) == [(1, 0), (4, 3)]
    assert indices(build_pairs(group(0.1, 0.9, 0.5), "one", seed=3)) == [(1, 0)]


def test_what_is_left_out_is_counted():
    samples = [
        sample(0, 1.0, (5, 6)), sample(1, 1.0, (5, 6)), sample(2, 0.0, ()), sample(3, None), sample(4, 0.0, (7,)),
        sample(5, 2.0, (8, 9), finish="length"),
    ]  # fmt: skip
    found = build_pairs(samples, "all", seed=0)
    assert indices(found) == [(0, 4)]
    assert found.dropped == Counter(duplicate=1, empty=1, ungraded=1)
    assert set(indices(build_pairs(samples, "all", seed=0, keep_truncated=True))) == {(0, 4), (5, 4), (5, 0)}


def test_a_truncated_completion_may_be_rejected():
    samples = [sample(0, 1.0), sample(1, 0.0, finish="length")]
    assert indices(build_pairs(samples, "zip", seed=0)) == [(0, 1)]


def test_lengths_may_be_held_close():
    samples = [sample(0, 1.0, (1, 2, 3, 4)), sample(1, 0.0, (5,)), sample(2, 0.0, (6, 7, 8))]
    for strategy in ("one", "zip", "all"):
        assert indices(build_pairs(samples, strategy, seed=0, max_length_difference=1)) == [(0, 2)]


def test_draws_are_a_function_of_seed_iteration_and_prompt():
    samples = group(1, 0, 1, 0, 0, 1, 1, 0)
    first = indices(build_pairs(samples, "zip", seed=1))
    assert indices(build_pairs(list(samples), "zip", seed=1)) == first
    others = [indices(build_pairs(samples, "zip", seed=1, iteration=number)) for number in range(1, 6)]
    others += [indices(build_pairs(samples, "zip", seed=number)) for number in range(2, 6)]
    assert any(other != first for other in others)


def test_all_are_capped_by_lot():
    found = build_pairs(group(*[1, 0] * 6), "all", seed=0, max_pairs=4)
    assert len(found.pairs) == 4 and sum(pair.weight for pair in found.pairs) == 1


@given(st.lists(st.sampled_from([None, 0.0, 0.5, 1.0]), min_size=1, max_size=12), st.integers(0, 3))
def test_pairs_are_preferences_whatever_the_rewards(rewards, seed):
    for strategy in ("one", "zip", "all"):
        pairs = build_pairs(group(*rewards), strategy, seed=seed, max_pairs=1000).pairs
        assert all(pair.reward_gap > 0 for pair in pairs)
        assert not pairs or math.isclose(sum(pair.weight for pair in pairs), 1)
        graded = [reward for reward in rewards if reward is not None]
        assert bool(pairs) == (len(set(graded)) > 1)
        if strategy == "zip" and set(graded) == {0.0, 1.0}:
            assert len(pairs) == min(graded.count(0.0), graded.count(1.0))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="completions of one prompt, got those of: p, q"):
        build_pairs([sample(0, 1.0), sample(1, 0.0, prompt="q")], seed=0)
    with pytest.raises(ValueError, match="got those of: none"):
        build_pairs([], seed=0)
    with pytest.raises(ValueError, match="'p/1' has reward nan: check the reward function"):
        build_pairs(group(1.0, math.nan), seed=0)
    with pytest.raises(ValueError, match="pair strategy is 'best'"):
        build_pairs(group(1, 0), "best", seed=0)
    with pytest.raises(ValueError, match="max_pairs is 0"):
        build_pairs(group(1, 0), max_pairs=0, seed=0)

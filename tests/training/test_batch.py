"""Groups and minibatches: whole prompts, also when samples were read back from a checkpoint."""

from dataclasses import replace

import pytest

from rlhf.training.batch import TrainingSample, group_by_prompt, split_minibatches
from tests.tiny_runs import make_samples


def test_groups_go_by_prompt_id_and_not_by_object():
    shared = [TrainingSample(sample, 0.0) for sample in make_samples(groups=4, size=3)]
    reloaded = [replace(s, sample=replace(s.sample, prompt=replace(s.sample.prompt))) for s in shared]
    assert len({id(s.sample.prompt) for s in reloaded}) == 12
    for samples in (shared, reloaded):
        groups = group_by_prompt(samples, 3)
        assert [[s.sample.id for s in group] for group in groups] == [
            [f"p:{g}/{i}" for i in range(3)] for g in range(4)
        ]


def test_a_prompt_that_comes_twice_is_two_groups():
    samples = make_samples(groups=1, size=2)
    again = [replace(sample, index=sample.index + 2) for sample in samples]
    groups = group_by_prompt([TrainingSample(sample, 0.0) for sample in [*samples, *again]], 2)
    assert [[s.sample.index for s in group] for group in groups] == [[0, 1], [2, 3]]


def test_minibatches_deal_whole_groups_in_the_given_order_and_refuse_a_rest():
    groups = group_by_prompt([TrainingSample(sample, 0.0) for sample in make_samples(groups=4, size=2)], 2)
    first, second = split_minibatches(groups, 2, [3, 0, 2, 1])
    assert [s.sample.id for s in first] == ["p:3/0", "p:3/1", "p:0/0", "p:0/1"]
    assert [s.sample.id for s in second] == ["p:2/0", "p:2/1", "p:1/0", "p:1/1"]
    with pytest.raises(ValueError, match="4 prompts on this rank cannot be dealt into 3 minibatches"):
        split_minibatches(groups, 3, [0, 1, 2, 3])

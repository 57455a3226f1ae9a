"""Advantages against closed forms."""

import pytest
import torch

from rlhf.algorithms import advantages


def test_group_normalised_has_mean_0_and_unit_std_up_to_epsilon():
    advantage = advantages.group_normalised(torch.tensor([1.0, 0.0, 0.0, 1.0]), 1e-4)
    std = (4 / 3 * 0.25) ** 0.5
    assert advantage.tolist() == pytest.approx(
        [0.5 / (std + 1e-4), -0.5 / (std + 1e-4)] * 1 + [-0.5 / (std + 1e-4), 0.5 / (std + 1e-4)]
    )


def test_group_mean_and_leave_one_out_differ_by_n_over_n_minus_1():
    reward = torch.tensor([3.0, 1.0, 2.0])
    assert advantages.group_mean(reward).tolist() == [1.0, -1.0, 0.0]
    assert advantages.leave_one_out(reward).tolist() == pytest.approx([3 - 1.5, 1 - 2.5, 2 - 2.0])


def test_a_group_of_one_teaches_nothing():
    one = torch.tensor([5.0])
    for advantage in (
        advantages.group_normalised(one, 1e-4),
        advantages.group_mean(one),
        advantages.leave_one_out(one),
    ):
        assert advantage.tolist() == [0.0]


def test_equal_rewards_have_exactly_no_signal():
    assert not advantages.has_signal(torch.tensor([0.1] * 7))
    assert advantages.has_signal(torch.tensor([0.1, 0.1, 0.2]))


def test_batch_mean_takes_the_mean_over_ranks_where_given():
    assert advantages.batch_mean(torch.tensor([1.0, 3.0])).tolist() == [-1.0, 1.0]
    assert advantages.batch_mean(torch.tensor([1.0, 3.0]), 1.0).tolist() == [0.0, 2.0]

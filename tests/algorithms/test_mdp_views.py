"""Three views of the same completions: where actions begin and end, what they earn, and when an episode is over."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.algorithms.mdp_views import is_done, outcome_rewards, summed_rewards, view_actions

TURNS = [[(2, 3), (1, 0)], [(4, 1)]]


def test_every_token_is_an_action_of_the_token_view():
    actions = view_actions("token", [2, 3])
    assert actions.position_S.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert actions.sequence_S.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert actions.state_A.tolist() == [0, 1, 3, 4, 5]
    assert actions.next_state_A.tolist() == [1, 2, 4, 5, 6]
    assert actions.is_last_A.tolist() == [False, True, False, False, True]
    assert actions.is_end_BL(3).tolist() == [[True, True, False], [True, True, True]]
    assert actions.first_state_B.tolist() == [0, 3]


def test_the_last_chunk_may_be_shorter():
    actions = view_actions("chunk", [7, 3], chunk_tokens=3)
    assert actions.start_A.tolist() == [0, 3, 6, 0]
    assert actions.end_A.tolist() == [3, 6, 7, 3]
    assert actions.tokens_A.tolist() == [3, 3, 1, 3]
    assert actions.is_end_BL(7)[0].nonzero()[:, 0].tolist() == [2, 5, 6]


def test_a_turn_leads_to_the_state_behind_the_environments_answer():
    actions = view_actions("turn", [6, 5], turns=TURNS)
    assert actions.position_S.tolist() == [0, 5, 6, 0, 5]
    assert actions.end_A.tolist() == [2, 6, 4]
    assert actions.is_own_BL(6).int().tolist() == [[1, 1, 0, 0, 0, 1], [1, 1, 1, 1, 0, 0]]


def test_an_outcome_is_the_last_actions_reward_and_token_rewards_add_up_over_an_action():
    actions = view_actions("turn", [6, 5], turns=TURNS)
    assert outcome_rewards(actions, torch.tensor([1.0, 0.5])).tolist() == [0, 1.0, 0.5]
    reward_BL = torch.arange(12.0).reshape(2, 6)
    # the environment's tokens belong to the action that they answer; the padding behind a completion to none
    assert summed_rewards(actions, reward_BL).tolist() == [0 + 1 + 2 + 3 + 4, 5, 6 + 7 + 8 + 9 + 10]


def test_a_truncated_completion_is_not_done():
    actions = view_actions("token", [2, 1])
    assert is_done(actions, torch.tensor([True, False])).tolist() == [False, False, True]


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 50))
def test_the_chunks_of_completions_partition_their_tokens(lengths, chunk):
    actions = view_actions("chunk", lengths, chunk_tokens=chunk)
    longest = max(lengths)
    assert actions.is_own_BL(longest).sum(1).tolist() == lengths
    assert actions.actions_B.tolist() == [-(-length // chunk) for length in lengths]
    reward_BL = torch.rand(len(lengths), longest)
    total_B = torch.zeros(len(lengths)).index_add(0, actions.sequence_A, summed_rewards(actions, reward_BL))
    expected = torch.stack([row[:length].sum() for row, length in zip(reward_BL, lengths, strict=True)])
    torch.testing.assert_close(total_B, expected)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_chunks_of_one_token_and_turns_of_one_token_are_the_token_view(lengths):
    views = (
        view_actions("token", lengths),
        view_actions("chunk", lengths, chunk_tokens=1),
        view_actions("turn", lengths, turns=[[(1, 0)] * length for length in lengths]),
    )
    for field in views[0].__dataclass_fields__:
        assert all(torch.equal(getattr(views[0], field), getattr(other, field)) for other in views[1:])


@pytest.mark.parametrize(
    ("view", "lengths", "settings", "message"),
    [
        ("word", [1], {}, "unknown view 'word': choose token, chunk or turn"),
        ("token", [3, 0], {}, "completion 1 has 0 tokens"),
        ("chunk", [3], {}, "needs chunk_tokens, at least 1, and got None"),
        ("chunk", [3], {"chunk_tokens": 0}, "needs chunk_tokens, at least 1, and got 0"),
        ("turn", [3], {}, "needs the turns of each of 1 completions, and got none"),
        ("turn", [3], {"turns": [[(2, 0)]]}, "completion 0: its turns have 2 tokens together, and it has 3"),
        ("turn", [3], {"turns": [[(2, 1), (0, 0)]]}, "completion 0: turn 1 has 0 tokens of the assistant"),
    ],
)
def test_views_that_cannot_be_made_are_refused(view, lengths, settings, message):
    with pytest.raises(ValueError, match=message):
        view_actions(view, lengths, **settings)


def test_rewards_and_flags_of_another_shape_are_refused():
    actions = view_actions("token", [2, 3])
    with pytest.raises(ValueError, match=r"outcomes of shape \(3,\) for 2 completions"):
        outcome_rewards(actions, torch.zeros(3))
    with pytest.raises(ValueError, match="for 2 completions of up to 3 tokens"):
        summed_rewards(actions, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"truncated_B of shape \(1,\) for 2 completions"):
        is_done(actions, torch.zeros(1))

"""What a packed batch holds, and which sequences go together."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlhf.models.packing import TrainingSequence, even_out, forwarded_tokens, micro_batches, pack


def test_a_shared_prompt_is_laid_out_once():
    batch = pack([TrainingSequence((7, 8), (1, 2, 3)), TrainingSequence((9,), (4,)), TrainingSequence((7, 8), (5, 6))])
    assert batch.input_ids_T.tolist() == [7, 8, 1, 2, 5, 9]
    assert batch.position_ids_T.tolist() == [0, 1, 2, 3, 2, 0]
    # both completions of (7, 8) start from its last token; targets are in order of sequence, not of the row
    assert batch.hidden_index_N.tolist() == [1, 2, 3, 5, 1, 4]
    assert batch.target_N.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.sequence_N.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.lengths == (3, 1, 2) and batch.tokens == 6 and batch.targets == 6


def test_an_unshared_prompt_is_repeated():
    batch = pack([TrainingSequence((7, 8), (1, 2)), TrainingSequence((7, 8), (5,))], share_prompts=False)
    assert batch.input_ids_T.tolist() == [7, 8, 1, 7, 8]
    assert batch.position_ids_T.tolist() == [0, 1, 2, 0, 1]
    assert batch.hidden_index_N.tolist() == [1, 2, 4] and batch.target_N.tolist() == [1, 2, 5]


def test_an_empty_completion_has_no_targets_and_costs_nothing():
    batch = pack([TrainingSequence((7, 8), ()), TrainingSequence((9,), (4, 5))])
    assert batch.input_ids_T.tolist() == [9, 4] and batch.lengths == (0, 2) and batch.sequence_N.tolist() == [1, 1]


def test_no_sequences_and_no_targets_give_one_dummy_token():
    for batch in (pack([]), pack([TrainingSequence((7,), ())])):
        assert batch.tokens == 1 and batch.targets == 0 and batch.hidden_index_N.shape == (0,)
        assert batch.plan.length == 1


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one prompt token to predict its 2 completion tokens"):
        TrainingSequence((), (1, 2))


def test_a_batch_moves_with_all_its_tensors():
    batch = pack([TrainingSequence((7, 8), (1, 2, 3)), TrainingSequence((7, 8), (4, 5))]).to("meta")
    plan_tensors = [batch.plan.slot_T, batch.plan.key_index, *(b.query_RC for b in batch.plan.buckets)]
    tensors = [batch.input_ids_T, batch.position_ids_T, batch.hidden_index_N, batch.target_N, batch.sequence_N]
    assert all(tensor.device.type == "meta" for tensor in tensors + plan_tensors)
    assert batch.sequences[0].completion_ids == (1, 2, 3)


SEQUENCES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 12)).map(
        # the prompt's number decides its length too
        lambda pair: TrainingSequence((pair[0] + 1,) * (2 * pair[0] + 1), tuple(range(pair[1])))
    ),
    max_size=20,
)


@settings(max_examples=150, deadline=None)
@given(SEQUENCES, st.integers(1, 60))
# an empty completion beside one of a single token: neither forwards a token of its own
@example([TrainingSequence((1,), (0,)), TrainingSequence((2, 2, 2), ()), TrainingSequence((2, 2, 2), (0,))], 1)
def test_micro_batches_keep_every_sequence_once_within_the_budget(sequences, budget):
    batches = micro_batches(sequences, budget)
    assert sorted(index for members in batches for index in members) == list(range(len(sequences)))
    assert batches == micro_batches(sequences, budget)
    for members in batches:
        part = [sequences[index] for index in members]
        assert forwarded_tokens(part) <= budget or len([s for s in part if s.completion_ids]) == 1
        if any(sequence.completion_ids for sequence in part):
            assert pack(part).tokens == forwarded_tokens(part)


def test_groups_stay_together_where_they_fit():
    sequences = [TrainingSequence((i % 3,) * 4, (1,) * 5) for i in range(12)]
    # a group is 4 + 4 * 4 = 20 tokens
    assert sorted(micro_batches(sequences, 20)) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert len(micro_batches(sequences, 60)) == 1
    assert [len(members) for members in micro_batches(sequences, 12)] == [2] * 6


def test_a_long_sequence_is_a_micro_batch_of_its_own():
    sequences = [TrainingSequence((1,), (1,) * 5), TrainingSequence((2,), (1,) * 50), TrainingSequence((3,), (1,) * 5)]
    assert micro_batches(sequences, 10) == [[1], [0, 2]]


def test_micro_batches_are_evened_out_with_empty_ones():
    assert even_out([[0, 2], [1]], 4) == [[0, 2], [1], [], []]
    with pytest.raises(ValueError, match="2 micro-batches cannot be evened out to 1"):
        even_out([[0], [1]], 1)
    with pytest.raises(ValueError, match="token_budget"):
        micro_batches([], 0)


def test_the_sequence_of_each_target_indexes_per_sequence_values(sequences):
    batch = pack(sequences)
    advantage = torch.arange(len(sequences), dtype=torch.float32)
    expected = [float(i) for i, sequence in enumerate(sequences) for _ in sequence.completion_ids]
    assert advantage[batch.sequence_N].tolist() == expected

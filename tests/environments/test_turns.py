"""Turns of a sample: lengths that must fit, masks, JSON."""

import json
from dataclasses import replace

import pytest

from rlhf.algorithms.mdp_views import view_actions
from rlhf.data.sample_json import sample_from_json, sample_to_json
from rlhf.data.types import Prompt, Sample
from rlhf.models.sequences import TrainingSequence
from rlhf.training.batch import TrainingSample
from tests.environments.sessions import dialogue_samples, own_mask

PROMPT = Prompt("p:1", (1, 2), [{"role": "user", "content": "?"}])


def session(turns, rewards, ids=(5, 6, 7, 8, 9)):
    logps = tuple(-float(place) for place in range(len(ids)))
    return Sample(PROMPT, 0, ids, logps, "length", 0, 0, turns=turns, turn_rewards=rewards)


def test_own_values():
    sample = session(((2, 1), (1, 1)), (0.0, 1.0))
    assert sample.own_tokens == 3
    assert sample.own(sample.completion_ids) == (5, 6, 8)
    assert sample.own(sample.logps) == (0.0, -1.0, -3.0)
    plain = session((), ())
    assert plain.own_tokens == 5 and plain.own(plain.logps) == plain.logps
    with pytest.raises(ValueError, match="3 values for 5 completion ids"):
        sample.own((1, 2, 3))


@pytest.mark.parametrize(
    ("turns", "rewards", "message"),
    [
        (((2, 1), (1, 0)), (0.0, 0.0), "'p:1/0': its 2 turns have 4 tokens together, and it has 5 completion ids"),
        (((2, 1), (0, 2)), (0.0, 0.0), "turn 1 has 0 tokens of the assistant and 2 of the environment"),
        (((2, 1), (1, 1)), (0.0,), "2 turns but 1 turn rewards"),
        ((), (1.0,), "0 turns but 1 turn rewards"),
    ],
)
def test_lengths_that_do_not_fit(turns, rewards, message):
    with pytest.raises(ValueError, match=message):
        session(turns, rewards)


def test_masks_are_those_of_the_turn_view():
    """The same tokens are the policy's in the packed batch, in the sample and in the process that a critic sees."""
    samples = [sample for sample in dialogue_samples() if sample.turns]
    lengths = [len(sample.completion_ids) for sample in samples]
    view = view_actions("turn", lengths, turns=[sample.turns for sample in samples])
    mask_BL = view.is_own_BL(max(lengths))
    for row, sample in enumerate(samples):
        mask = own_mask(sample)
        assert mask_BL[row, : lengths[row]].tolist() == mask
        positions = [place for place, is_own in enumerate(mask) if is_own]
        sequence = TrainingSequence(sample.prompt.token_ids, sample.completion_ids, sample.turns)
        assert list(sequence.target_positions) == positions and sequence.targets == sample.own_tokens == len(positions)
        assert sequence.forwarded == positions[-1]


def test_json_and_back():
    for sample in dialogue_samples(2):
        sample = replace(sample, messages=("5", "higher", "6"))
        assert sample_from_json(json.loads(json.dumps(sample_to_json(sample)))) == sample
    old = sample_to_json(session((), ()))
    for name in ("turns", "turn_rewards", "messages"):
        del old[name]
    assert sample_from_json(json.loads(json.dumps(old))) == session((), ())


def test_advantages_are_of_own_tokens():
    sample = session(((2, 1), (1, 1)), (0.0, 1.0))
    assert TrainingSample(sample, 2.0).token_advantages == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="5 advantages for 3 tokens of the policy"):
        TrainingSample(sample, 0.0, advantages=(0.0,) * 5)

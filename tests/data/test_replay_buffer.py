"""Batches of a hybrid replay buffer: exact shares, draws that a step alone decides, and rare successes that stay."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.episodes import Episode
from rlhf.data.replay_buffer import OfflineShare, ReplayBuffer


def episode(name, reward=0.0, *, prompt="p", tokens=3, epoch=0, **fields):
    return Episode(
        id=str(name), prompt_id=prompt, prompt_ids=[1, 2], token_ids=range(tokens), logps=[-1.0] * tokens,
        rewards=[0.0] * (tokens - 1) + [reward], policy_version=epoch, epoch=epoch, **fields,
    )  # fmt: skip


def names(episodes):
    return [each.id for each in episodes]


OFFLINE = [episode(f"offline-{i}") for i in range(6)]


def filled():
    buffer = ReplayBuffer(seed=3, offline=OFFLINE)
    buffer.add(episode(i, epoch=i // 10) for i in range(40))
    return buffer


def test_half_of_a_batch_is_offline_and_half_of_the_rest_is_of_the_newest_epoch():
    batch = filled().batch(0, 16)
    assert batch.offline == 8 and len(batch.episodes) == 16
    assert all(each.id.startswith("offline") for each in batch.episodes[:8])
    assert [each.epoch for each in batch.episodes[8:12]] == [3] * 4
    assert not any(each.id.startswith("offline") for each in batch.episodes[8:])


def test_the_uniform_half_takes_all_stored_episodes_alike():
    buffer = ReplayBuffer(seed=0)
    buffer.add(episode(i, epoch=i) for i in range(10))
    drawn = [each.epoch for step in range(400) for each in buffer.batch(step, 4).episodes[2:]]
    # 800 draws, 80 expected of each; 5 standard deviations are 42
    assert all(abs(drawn.count(epoch) - 80) < 42 for epoch in range(10))


def test_a_batch_is_a_function_of_seed_step_and_contents():
    one, other = filled(), filled()
    other.batch(0, 8), other.batch(1, 8)
    assert names(one.batch(2, 8).episodes) == names(other.batch(2, 8).episodes)
    assert names(one.batch(2, 8).episodes) != names(one.batch(3, 8).episodes)


def test_no_episode_repeats_in_a_part_before_all_have_been_drawn():
    batch = ReplayBuffer(seed=1, offline=OFFLINE, share=OfflineShare(start=1.0)).batch(0, 15)
    counts = [names(batch.episodes).count(each.id) for each in OFFLINE]
    assert sorted(counts) == [2, 2, 2, 3, 3, 3]
    assert len(set(names(batch.episodes[:6]))) == len(set(names(batch.episodes[6:12]))) == 6


def test_an_empty_store_leaves_its_part_to_the_other():
    assert ReplayBuffer(seed=0, offline=OFFLINE).batch(0, 4).offline == 4
    online = ReplayBuffer(seed=0)
    online.add([episode(0)])
    assert online.batch(0, 4).offline == 0
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        ReplayBuffer(seed=0).batch(0, 4)


@settings(deadline=None)
@given(st.integers(0, 64), st.integers(1, 64), st.integers(0, 1000))
def test_a_share_that_gives_whole_numbers_is_exact(offline, batch, step):
    offline = min(offline, batch)
    assert OfflineShare(start=offline / batch).count(step, batch) == offline


def test_other_shares_are_exact_over_many_steps():
    counts = [OfflineShare(start=0.1).count(step, 4) for step in range(1000)]
    assert set(counts) == {0, 1} and abs(sum(counts) - 400) <= 2


def test_the_share_is_annealed_linearly():
    share = OfflineShare(start=0.5, end=0.1, anneal_steps=100)
    assert [round(share.at(step), 12) for step in (0, 50, 100, 1000)] == [0.5, 0.3, 0.1, 0.1]
    assert [share.count(step, 10) for step in (0, 50, 100, 1000)] == [5, 3, 1, 1]


def test_the_oldest_leave_first():
    buffer = ReplayBuffer(seed=0, max_episodes=3)
    assert names(buffer.add(episode(i) for i in range(5))) == ["0", "1"]
    assert names(buffer.online) == ["2", "3", "4"] and buffer.online.evicted == 2


def test_bytes_bound_the_store():
    size = episode(0).nbytes
    buffer = ReplayBuffer(seed=0, max_bytes=3 * size)
    buffer.add(episode(i) for i in range(10))
    assert len(buffer.online) == 3 and buffer.online.nbytes == 3 * size
    with pytest.raises(ValueError, match=r"episode 'long' has .* bytes, and the store is bounded to"):
        buffer.add([episode("fits"), episode("long", tokens=100)])
    assert "fits" not in names(buffer.online)


def test_a_rare_success_outlives_all_that_is_newer():
    buffer = ReplayBuffer(seed=0, max_episodes=8)
    buffer.add([episode("success", 1.0)])
    for i in range(200):
        buffer.add([episode(i)])
    assert names(buffer.online) == ["success", *map(str, range(193, 200))]


def test_a_success_whose_siblings_have_left_leaves_after_everything_else():
    buffer = ReplayBuffer(seed=0, max_episodes=4)
    buffer.add([*(episode(i, prompt="hard") for i in range(3)), episode("success", 1.0, prompt="hard")])
    for i in range(20):
        buffer.add([episode(f"easy-{i}", 0.5, prompt=f"easy-{i}")])
    assert names(buffer.online) == ["success", "easy-17", "easy-18", "easy-19"]
    # nothing is left but rare successes of other prompts: the oldest of them leaves, and the bound holds
    for i in range(4):
        buffer.add([episode(f"bad-{i}", prompt=f"p{i}"), episode(f"good-{i}", 1.0, prompt=f"p{i}")])
    assert len(buffer.online) == 4


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=60),
    st.integers(1, 10),
)
def test_no_episode_above_the_95th_percentile_of_its_prompt_is_ever_evicted(added, bound):
    buffer = ReplayBuffer(seed=0, max_episodes=bound)
    for number, (prompt, reward, tokens) in enumerate(added):
        new = episode(number, float(reward), prompt=str(prompt), tokens=tokens)
        stored = {each.id: each for each in (*buffer.online, new)}
        for victim in buffer.add([new]):
            returns = [each.episode_return for each in stored.values() if each.prompt_id == victim.prompt_id]
            assert victim.episode_return <= np.quantile(returns, 0.95) + 1e-12
            del stored[victim.id]
        assert set(names(buffer.online)) == set(stored)
        assert len(buffer.online) == min(bound, number + 1)
        assert buffer.online.nbytes == sum(each.nbytes for each in stored.values())


def test_a_checkpoint_of_json_and_tensors_goes_on_bit_for_bit(tmp_path):
    def made():
        return ReplayBuffer(seed=3, offline=OFFLINE, max_episodes=8)

    def extended(i):
        return episode(
            i, float(i == 2), tokens=1 + i % 4, epoch=i // 5, truncated=i % 2 == 0, turns=((1, i % 4),),
            in_bootstrap=(True, i % 3 == 0), extra={"candidate_ids": np.full((1 + i % 4, 2), i, dtype=np.int32)},
        )  # fmt: skip

    before = made()
    before.add(extended(i) for i in range(12))
    torch.save(before.state_dict(), tmp_path / "buffer.pt")
    state = torch.load(tmp_path / "buffer.pt", weights_only=True)
    tensors = state["online"]["episodes"].pop("tensors")
    state = json.loads(json.dumps(state))
    state["online"]["episodes"]["tensors"] = tensors
    after = made()
    after.load_state_dict(state)
    for buffer in (before, after):
        buffer.add(extended(i) for i in range(12, 20))
    assert names(before.online) == names(after.online) and before.online.evicted == after.online.evicted == 12
    assert names(before.batch(7, 9).episodes) == names(after.batch(7, 9).episodes)
    for one, other in zip(before.online, after.online, strict=True):
        assert one.turns == other.turns and one.in_bootstrap == other.in_bootstrap
        assert one.truncated == other.truncated and one.episode_return == other.episode_return
        for name, array in one.arrays().items():
            np.testing.assert_array_equal(array, other.arrays()[name])
            assert array.dtype == other.arrays()[name].dtype


def test_an_empty_buffer_can_be_saved():
    buffer = ReplayBuffer(seed=0, offline=OFFLINE)
    buffer.load_state_dict(buffer.state_dict())
    assert len(buffer.online) == 0


def test_a_checkpoint_of_other_data_is_refused():
    state = filled().state_dict()
    with pytest.raises(ValueError, match=r"offline was 6 episodes, .* in the checkpoint and is 5 episodes"):
        ReplayBuffer(seed=3, offline=OFFLINE[:5]).load_state_dict(state)
    with pytest.raises(ValueError, match="seed was 3 in the checkpoint and is 4"):
        ReplayBuffer(seed=4, offline=OFFLINE).load_state_dict(state)
    state["online"]["episodes"]["tensors"]["logps"] = torch.zeros(2)
    with pytest.raises(ValueError, match="damaged: logps has 2 rows, and its 40 episodes 120"):
        filled().load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OfflineShare(start=1.5), r"start must be in \[0, 1\], got 1.5"),
        (lambda: OfflineShare(anneal_steps=-1), "anneal_steps must be 0"),
        (lambda: ReplayBuffer(seed=0, max_bytes=0), "max_bytes must be at least 1, got 0"),
        (lambda: ReplayBuffer(seed=0, offline=[OFFLINE[0]] * 2), "ids of the offline episodes occur twice"),
        (lambda: filled().batch(-1, 4), "cannot draw 4 episodes for step -1"),
        (lambda: filled().add([episode(0)]), "episode '0' is stored already"),
        (lambda: episode(0, float("nan")), "rewards that are not finite"),
        (lambda: Episode("e", "p", [1], [], [], [], 0), "has no tokens"),
        (
            lambda: ReplayBuffer(seed=0).add([episode(0), episode(0)]),
            "episode '0' is stored already: ids are unique over a run",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_episodes_with_different_extras_cannot_be_saved():
    buffer = ReplayBuffer(seed=0)
    buffer.add([episode(0), episode(1, extra={"phi": np.zeros((3, 4))})])
    with pytest.raises(ValueError, match="episodes of one buffer need the same"):
        buffer.state_dict()

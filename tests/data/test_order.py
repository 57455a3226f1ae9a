"""Every prompt once per epoch, whatever happens in between; the position is the whole state."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.errors import DataError
from rlhf.data.order import PromptOrder, PromptStream
from rlhf.data.types import Prompt


@dataclass
class Numbers:
    """A source whose i-th prompt is the token i."""

    size: int
    name: str = "numbers"
    fingerprint: str = "f"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Prompt:
        return Prompt(f"numbers:{index}", (index,), str(index))


def indices(prompts: list[Prompt]) -> list[int]:
    return [prompt.token_ids[0] for prompt in prompts]


@given(length=st.integers(1, 200), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 5))
def test_each_epoch_is_a_permutation(length, seed, epoch):
    order = PromptOrder(length, seed)
    assert sorted(order(epoch * length + offset) for offset in range(length)) == list(range(length))


@given(length=st.integers(1, 60), seed=st.integers(0, 1000), epochs=st.integers(2, 5))
def test_no_index_comes_twice_within_a_third_of_the_data(length, seed, epochs):
    order, last = PromptOrder(length, seed), {}
    for position in range(length * epochs):
        index = order(position)
        assert position - last.get(index, -length) >= length // 3 + 1
        last[index] = position


def test_order_is_a_function_of_seed_and_position_only():
    order = PromptOrder(10, 7)
    forward = [order(position) for position in range(40)]
    assert [PromptOrder(10, 7)(position) for position in reversed(range(40))] == forward[::-1]
    # pinned: a change of these numbers would break the resume of every existing run
    assert forward[:20] == [9, 7, 5, 1, 0, 8, 3, 2, 6, 4, 0, 7, 8, 5, 4, 3, 1, 9, 6, 2]
    assert len({tuple(forward[start : start + 10]) for start in range(0, 40, 10)}) == 4
    assert [PromptOrder(10, 8)(position) for position in range(10)] != forward[:10]


def test_every_place_is_equally_likely_also_after_the_boundary_rule():
    """Over 4,000 seeds the index at each position of the second epoch is uniform (expected 400 +- 19 each)."""
    counts = [[0] * 10 for _ in range(10)]
    for seed in range(4000):
        order = PromptOrder(10, seed)
        for offset in range(10):
            counts[offset][order(10 + offset)] += 1
    assert max(abs(count - 400) for row in counts for count in row) < 5 * 19


@given(
    length=st.integers(1, 40),
    takes=st.lists(st.integers(0, 17), max_size=12),
    kill_after=st.integers(0, 12),
)
def test_resume_takes_what_an_uninterrupted_run_takes(length, takes, kill_after):
    """Takes of any size (refills among them): none lost, none twice."""
    whole = PromptStream(Numbers(length), seed=3)
    expected = indices(whole.take(sum(takes)))
    first = PromptStream(Numbers(length), seed=3)
    taken = [i for n in takes[:kill_after] for i in indices(first.take(n))]
    resumed = PromptStream(Numbers(length), seed=3)
    resumed.load_state_dict(first.state_dict())
    taken += [i for n in takes[kill_after:] for i in indices(resumed.take(n))]
    assert taken == expected
    assert resumed.state_dict() == whole.state_dict() == {
        "position": sum(takes), "seed": 3, "length": length, "fingerprint": "f"
    }  # fmt: skip


def test_stopping_exactly_at_an_epoch_boundary_goes_on_with_the_next_epoch():
    stream = PromptStream(Numbers(6), seed=0)
    first = indices(stream.take(6))
    resumed = PromptStream(Numbers(6), seed=0, position=stream.position)
    assert resumed.epoch == 1.0
    second = indices(resumed.take(6))
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second


@pytest.mark.parametrize(
    ("source", "seed", "message"),
    [
        (Numbers(11), 0, "length was 10, and is 11"),
        (Numbers(10, fingerprint="g"), 0, "fingerprint was f, and is g"),
        (Numbers(10), 1, "seed was 0, and is 1"),
    ],
)
def test_resume_with_other_prompts_is_refused(source, seed, message):
    state = PromptStream(Numbers(10), seed=0, position=4).state_dict()
    stream = PromptStream(source, seed=seed)
    with pytest.raises(DataError, match=message) as caught:
        stream.load_state_dict(state)
    assert "numbers" in str(caught.value) and "run.name" in str(caught.value)
    assert stream.position == 0


def test_an_empty_source_and_a_negative_position_are_refused():
    with pytest.raises(ValueError, match="no prompts"):
        PromptOrder(0, 0)
    with pytest.raises(ValueError, match="before the start"):
        PromptOrder(3, 0)(-1)

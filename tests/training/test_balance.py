"""Work dealt over ranks."""

import itertools

import pytest

from rlhf.data.types import Prompt, Sample
from rlhf.training.balance import assign, group_cost, imbalance
from rlhf.training.batch import TrainingSample


def test_the_costliest_go_first_each_to_the_rank_with_the_least():
    assert assign([5, 4, 3, 3, 3], 2) == [0, 1, 1, 0, 1]
    assert imbalance([5, 4, 3, 3, 3], [0, 1, 1, 0, 1], 2) == pytest.approx(10 / 9)


def test_the_load_is_at_most_a_third_above_the_best():
    costs = [7, 7, 6, 6, 5, 5, 4, 4, 4]
    best = min(
        max(sum(c for c, o in zip(costs, owners, strict=True) if o == rank) for rank in range(3))
        for owners in itertools.product(range(3), repeat=len(costs))
    )
    owners = assign(costs, 3)
    worst = max(sum(c for c, o in zip(costs, owners, strict=True) if o == rank) for rank in range(3))
    assert best == 16 and worst <= best * 4 / 3


def test_each_rank_keeps_its_number_of_groups_where_asked():
    owners = assign([9, 1, 1, 1], 2, groups_per_rank=[2, 2])
    assert sorted(owners) == [0, 0, 1, 1]
    assert assign([9, 1, 1, 1], 2).count(owners[0]) == 1


def test_nothing_to_do_is_no_imbalance():
    assert assign([], 3) == [] and imbalance([], [], 3) == 1.0 and imbalance([0.0], [0], 3) == 1.0


def test_a_group_costs_what_is_forwarded():
    prompt = Prompt("p", (1, 2, 3), "text")

    def sample(length: int, learned: bool = True) -> TrainingSample:
        ids = tuple(range(10, 10 + length))
        return TrainingSample(Sample(prompt, 0, ids, (-1.0,) * length, "stop", 0, 0), 1.0, learned=learned)

    # the prompt once; the last token of a completion predicts nothing
    assert group_cost([sample(4), sample(2)]) == 3 + 3 + 1
    assert group_cost([sample(4), sample(2, learned=False)]) == 3 + 3
    assert group_cost([sample(2, learned=False)]) == group_cost([sample(0)]) == 0

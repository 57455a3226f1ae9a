"""Choices against the paper's sequences, closed forms, and what must hold for any sizes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.optim.schedules import (
    choose_chunk,
    choose_columns,
    choose_entries,
    choose_rows,
    choose_tensors,
    choose_tensors_by_elements,
    count_of,
    density_at,
    element_window,
    ordered,
)

SMOLLM2_LAYER = [576 * 576, 192 * 576, 192 * 576, 576 * 576, 1536 * 576, 1536 * 576, 576 * 1536]


def choices(epochs, total, density, order, seed=0):
    return [choose_tensors(total, density, order, seed, epoch, 0) for epoch in range(epochs)]


def test_sequences_of_whole_tensors():
    assert choices(5, 8, 0.25, "descending") == [[6, 7], [4, 5], [2, 3], [0, 1], [6, 7]]
    assert choices(5, 7, 2 / 7, "descending") == [[5, 6], [3, 4], [1, 2], [0, 6], [4, 5]]
    assert choices(5, 7, 2 / 7, "ascending") == [[0, 1], [2, 3], [4, 5], [0, 6], [1, 2]]
    assert choices(5, 8, 0.25, "mirror") == [[0, 7], [1, 6], [2, 5], [3, 4], [0, 7]]
    assert choices(3, 8, 0.5, "mirror") == [[0, 1, 6, 7], [2, 3, 4, 5], [0, 1, 6, 7]]


def test_random_tensors_are_drawn_anew_in_each_epoch():
    drawn = choices(400, 8, 0.25, "random")
    assert all(len(set(chosen)) == 2 and chosen == sorted(chosen) for chosen in drawn)
    counts = torch.bincount(torch.tensor(drawn).view(-1), minlength=8)
    # 100 expected of each, standard deviation 8.7
    assert counts.min() > 60 and counts.max() < 140
    assert drawn == choices(400, 8, 0.25, "random")
    assert drawn != choices(400, 8, 0.25, "random", seed=1)


def test_mirror_takes_an_even_number():
    with pytest.raises(ValueError, match=r"half of the 3 state-full tensors from each end, and 3 is odd: change"):
        choose_tensors(8, 0.375, "mirror", 0, 0, 0)
    assert choose_tensors(7, 1.0, "mirror", 0, 0, 0) == list(range(7))


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="order is 'up': choose ascending, descending, mirror or random"):
        ordered(3, "up", 0, 0, 0)


@pytest.mark.parametrize("order", ["ascending", "descending", "mirror", "random"])
@pytest.mark.parametrize("total", [0, 1, 2, 7, 8])
def test_an_order_is_a_permutation(order, total):
    assert sorted(ordered(total, order, 3, 5, 7)) == list(range(total))


@pytest.mark.parametrize(
    ("total", "density", "nearest", "floor", "rounded"),
    [(6, 0.25, 2, 1, 2), (10, 0.25, 3, 2, 2), (576, 0.25, 144, 144, 144), (3, 0.1, 1, 0, 0), (8, 0.0, 0, 0, 0),
     (8, 1.0, 8, 8, 8), (0, 0.5, 0, 0, 0), (1, 0.01, 1, 0, 0), (100, 0.29, 29, 28, 29)],
)  # fmt: skip
def test_counts(total, density, nearest, floor, rounded):
    assert count_of(total, density) == nearest
    assert count_of(total, density, "floor") == floor
    assert count_of(total, density, "round") == rounded


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_a_density_outside_0_to_1_is_refused(density):
    with pytest.raises(ValueError, match=r"density is .*: it must be in \[0, 1\]"):
        count_of(8, density)


sizes_of_tensors = st.lists(st.integers(1, 50), min_size=1, max_size=12)
orders = st.sampled_from(["ascending", "descending", "mirror", "random"])


@given(sizes_of_tensors, st.floats(0, 1), orders, st.integers(0, 50), st.integers(0, 9))
def test_chosen_elements_are_within_one_tensor_of_the_target(sizes, density, order, epoch, seed):
    chosen = choose_tensors_by_elements(sizes, density, order, seed, epoch, 0)
    assert chosen == sorted(set(chosen))
    target = count_of(sum(sizes), density)
    assert abs(sum(sizes[index] for index in chosen) - target) <= max(sizes)
    assert bool(chosen) == (density > 0)
    if density == 1:
        assert chosen == list(range(len(sizes)))


@pytest.mark.parametrize("order", ["ascending", "descending", "mirror", "random"])
def test_a_quarter_of_a_language_model_is_a_quarter_within_one_tensor(order):
    sizes = SMOLLM2_LAYER * 30
    total = sum(sizes)
    assert total == 106_168_320
    for epoch in range(40):
        chosen = choose_tensors_by_elements(sizes, 0.25, order, 0, epoch, 0)
        assert abs(sum(sizes[index] for index in chosen) / total - 0.25) <= max(sizes) / total < 0.0084


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 12), orders, st.integers(0, 30))
def test_tensors_of_one_size_are_chosen_as_by_number(total, size, count, order, epoch):
    if count > total or (order == "mirror" and count % 2):
        return
    by_number = choose_tensors(total, count / total, order, 0, epoch, 0)
    assert choose_tensors_by_elements([size] * total, count / total, order, 0, epoch, 0) == by_number


@given(st.lists(st.integers(1, 20), min_size=4, max_size=12), st.integers(2, 4), st.data())
def test_in_a_round_every_tensor_is_chosen_once(sizes, parts, data):
    sizes[0] += -sum(sizes) % parts
    order = data.draw(st.sampled_from(["ascending", "descending", "mirror"]))
    if max(sizes) > sum(sizes) // parts:
        return
    first = data.draw(st.integers(0, 9))
    rounds = [choose_tensors_by_elements(sizes, 1 / parts, order, 0, first + k, 0) for k in range(parts)]
    assert sorted(index for chosen in rounds for index in chosen) == list(range(len(sizes)))


def test_a_window_shorter_than_a_tensor_takes_the_tensor_it_lies_in():
    assert [element_window([10, 30, 10], 5, offset, [0, 1, 2]) for offset in (0, 10, 25, 40, 49)] == [
        [0], [1], [1], [2], [0]
    ]  # fmt: skip


def test_the_density_falls_linearly_and_stays():
    assert [density_at(epoch, 0.25, 0.05, 4) for epoch in range(7)] == pytest.approx(
        [max(0.05, 0.25 - 0.2 * epoch / 4) for epoch in range(7)]
    )
    assert density_at(0, 0.25, 0.05, 0) == 0.05


@pytest.mark.parametrize("choose", [choose_columns, choose_rows])
def test_columns_and_rows_are_sorted_distinct_and_of_the_right_number(choose):
    chosen = choose(576, 0.25, 1, 2, 3)
    assert chosen.dtype == torch.int32 and len(chosen) == 144
    assert chosen.equal(chosen.unique()) and chosen.min() >= 0 and chosen.max() < 576
    assert choose(6, 0.25, 0, 0, 0).numel() == 2 and choose(6, 0.25, 0, 0, 0, "floor").numel() == 1
    assert choose(6, 1.0, 0, 0, 0).tolist() == list(range(6))
    assert choose(6, 0.0, 0, 0, 0).numel() == 0


def test_columns_are_equally_likely():
    counts = torch.zeros(12)
    for epoch in range(1200):
        counts[choose_columns(12, 0.25, 0, epoch, 0).long()] += 1
    # 300 expected of each, standard deviation 15
    assert counts.min() > 225 and counts.max() < 375


def test_entries_are_an_exact_number_of_the_tensor():
    mask = choose_entries(1000, 0.25, 0, 1, 2)
    assert mask.dtype == torch.bool and int(mask.sum()) == 250
    assert int(choose_entries(7, 0.01, 0, 0, 0).sum()) == 1
    assert choose_entries(7, 1.0, 0, 0, 0).all()


@given(st.integers(1, 20_000), st.floats(0, 1), st.integers(0, 99))
def test_chunks_begin_in_their_piece(numel, density, epoch):
    first, length = choose_chunk(numel, density, 0, epoch, 0)
    assert length == count_of(numel, density) and 0 <= first < numel
    assert first % 64 == 0 or numel < 4096


def test_chunks_begin_anywhere():
    firsts = {choose_chunk(10, 0.2, 0, epoch, 0)[0] for epoch in range(200)}
    assert firsts == set(range(10))


@pytest.mark.parametrize(
    "choose",
    [
        lambda seed, epoch, key: choose_columns(500, 0.25, seed, epoch, key).tolist(),
        lambda seed, epoch, key: choose_entries(500, 0.25, seed, epoch, key).tolist(),
        lambda seed, epoch, key: choose_chunk(10**6, 0.25, seed, epoch, key),
        lambda seed, epoch, key: choose_tensors(500, 0.25, "random", seed, epoch, key),
        lambda seed, epoch, key: choose_tensors_by_elements(range(1, 500), 0.25, "random", seed, epoch, key),
    ],
)
def test_choices_depend_on_seed_epoch_and_key_alone(choose):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = choose(1, 2, 3)
    assert torch.random.get_rng_state().equal(before)
    torch.manual_seed(2)
    assert choose(1, 2, 3) == first
    others = [choose(seed, epoch, key) for seed, epoch, key in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1), (2, 1, 3)]]
    assert first not in others

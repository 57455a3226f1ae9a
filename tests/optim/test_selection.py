"""Selections against dense masks, on tensors that are cut into pieces anywhere."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.optim.selection import Columns, Entries, Everything, Nothing, Rows, Slices, carry_over


@st.composite
def cut_tensors(draw):
    """(rows, width, pieces as (start, numel), generator) with cuts anywhere, also twice at one place."""
    rows, width = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    cuts = sorted(draw(st.lists(st.integers(0, rows * width), max_size=4)))
    bounds = [0, *cuts, rows * width]
    pieces = [(first, stop - first) for first, stop in pairwise(bounds)]
    return rows, width, pieces, torch.Generator().manual_seed(draw(st.integers(0, 2**31)))


def some_of(total, generator):
    count = int(torch.randint(total + 1, (), generator=generator))
    return torch.randperm(total, generator=generator)[:count].sort().values.to(torch.int32)


def check_piece(selection, mask_N, start):
    """Every method against the piece's part of a dense mask, with neighbours of the piece that must not change."""
    numel = len(mask_N)
    buffer = torch.full((numel + 6,), float("nan"))
    flat = buffer[2 : 2 + numel]
    flat.copy_(torch.arange(numel) + 0.5)
    original = flat.clone()
    assert selection.size == int(mask_N.sum())
    gathered = selection.gather(flat)
    assert torch.equal(gathered, original[mask_N])
    assert torch.equal(selection.global_index("cpu"), mask_N.nonzero().view(-1) + start)
    assert selection.global_index("cpu").dtype == torch.int64
    for views, chosen in ((selection.views(flat), mask_N), (selection.other_views(flat), ~mask_N)):
        if views is not None:
            assert torch.equal(torch.cat([*views, flat[:0]]), original[chosen])
            assert all(view.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr() for view in views)
    selection.scatter_(flat, gathered)
    assert torch.equal(flat, original)
    selection.scatter_(flat, -original[mask_N])
    assert torch.equal(flat, torch.where(mask_N, -original, original))
    assert buffer[:2].isnan().all() and buffer[2 + numel :].isnan().all()


@given(cut_tensors())
def test_columns_of_any_pieces_are_the_columns_of_the_tensor(tensor):
    rows, width, pieces, generator = tensor
    columns = some_of(width, generator)
    mask = torch.zeros(rows, width, dtype=torch.bool)
    mask[:, columns.long()] = True
    for start, numel in pieces:
        check_piece(Columns(start, numel, width, columns), mask.view(-1)[start : start + numel], start)


@given(cut_tensors())
def test_rows_of_any_pieces_are_the_rows_of_the_tensor(tensor):
    rows, width, pieces, generator = tensor
    chosen = some_of(rows, generator)
    mask = torch.zeros(rows, width, dtype=torch.bool)
    mask[chosen.long()] = True
    for start, numel in pieces:
        check_piece(Rows(start, numel, width, chosen), mask.view(-1)[start : start + numel], start)


@given(cut_tensors())
def test_entries_of_any_pieces_are_those_of_the_mask_and_take_a_bit_each(tensor):
    rows, width, pieces, generator = tensor
    mask = torch.rand(rows * width, generator=generator) < 0.4
    for start, numel in pieces:
        piece_mask = mask[start : start + numel]
        selection = Entries.from_mask(start, piece_mask)
        check_piece(selection, piece_mask, start)
        assert selection.bits_B.dtype == torch.uint8 and selection.bits_B.numel() == -(-numel // 8)
        check_piece(Entries(start, numel, selection.bits_B), piece_mask, start)


@given(cut_tensors(), st.data())
def test_slices_wrap_around_the_end_of_their_piece(tensor, data):
    _, _, pieces, _ = tensor
    for start, numel in pieces:
        if numel == 0:
            continue
        first, length = data.draw(st.integers(0, numel - 1)), data.draw(st.integers(0, numel))
        mask = torch.zeros(numel, dtype=torch.bool)
        mask[(first + torch.arange(length)) % numel] = True
        check_piece(Slices.wrapping(start, numel, first, length), mask, start)


@given(cut_tensors())
def test_everything_and_nothing(tensor):
    for start, numel in tensor[2]:
        check_piece(Everything(start, numel), torch.ones(numel, dtype=torch.bool), start)
        check_piece(Nothing(start, numel), torch.zeros(numel, dtype=torch.bool), start)


@given(cut_tensors())
def test_state_is_carried_to_elements_that_stay_and_others_get_zero(tensor):
    rows, width, pieces, generator = tensor
    old_columns, new_columns = some_of(width, generator), some_of(width, generator)
    whole = torch.rand(rows * width, generator=generator) + 1
    stays = torch.isin(torch.arange(width), old_columns).expand(rows, width).reshape(-1)
    for start, numel in pieces:
        old, new = Columns(start, numel, width, old_columns), Columns(start, numel, width, new_columns)
        piece = slice(start, start + numel)
        carried = carry_over(old, new, numel, old.gather(whole[piece]))
        assert torch.equal(carried, new.gather(torch.where(stays, whole, 0)[piece]))


def test_one_stretch_is_a_view_so_that_it_needs_no_copy():
    flat = torch.zeros(10)
    selection = Slices.wrapping(0, 10, 3, 4)
    selection.gather(flat).add_(1)
    assert flat.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    assert Everything(0, 10).gather(flat).data_ptr() == flat.data_ptr()


def test_two_dimensional_selection_of_a_large_tensor_keeps_only_one_small_index():
    selection = Columns(0, 512 * 1024, 1024, torch.arange(0, 1024, 4, dtype=torch.int32))
    assert [grid.index.numel() for grid in selection.grids] == [256]
    assert selection.grids[0].index.dtype == torch.int32


def test_columns_of_a_piece_inside_one_row():
    columns = torch.tensor([1, 4, 5], dtype=torch.int32)
    selection = Columns(12, 3, 10, columns)  # columns 2, 3, 4 of row 1
    assert selection.global_index("cpu").tolist() == [14]
    assert selection.gather(torch.tensor([0.2, 0.3, 0.4])).tolist() == pytest.approx([0.4])


@pytest.mark.parametrize(
    "selection",
    [Everything(0, 6), Columns(0, 6, 3, torch.tensor([1], dtype=torch.int32)), Entries.from_mask(0, torch.ones(6) > 0)],
)
def test_a_flat_tensor_of_another_length_is_refused(selection):
    with pytest.raises(ValueError, match="the piece has 6 elements and the flat tensor 8: pass the piece's view"):
        selection.gather(torch.zeros(8))
    with pytest.raises(ValueError, match="the piece has 6 elements and the flat tensor 8"):
        selection.scatter_(torch.zeros(8), torch.zeros(selection.size))


def test_ranges_that_overlap_or_leave_the_piece_are_refused():
    with pytest.raises(ValueError, match="not ascending, disjoint and within 6 elements"):
        Slices(0, 6, [(0, 4), (3, 5)])
    with pytest.raises(ValueError, match="within 6 elements"):
        Slices(0, 6, [(4, 7)])
    with pytest.raises(ValueError, match="no 2 elements from element 6 on in a piece of 6"):
        Slices.wrapping(0, 6, 6, 2)


def test_bits_of_another_length_are_refused():
    with pytest.raises(ValueError, match="2 bytes of bits for 6 elements: give 1"):
        Entries(0, 6, torch.zeros(2, dtype=torch.uint8))

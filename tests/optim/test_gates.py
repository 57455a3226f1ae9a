"""The size of a group's gradient, read only as far as a gate needs it."""

import math

import pytest
import torch

from rlhf.optim import AuON, Frugal
from rlhf.optim.gates import group_rms
from rlhf.optim.layout import Piece, Pieces, pieces_of

NAN = float("nan")
GATE = {"lr": 0.1, "skip_nonfinite": False, "min_grad_rms": 1e-3}


def layouts(*groups):
    return [[pieces_of(grad, f"{index}.{place}") for place, grad in enumerate(of)] for index, of in enumerate(groups)]


def test_an_exact_value_reads_everything():
    one, other = [torch.full((3,), 2.0), torch.zeros(9)], [torch.full((4,), 0.5, dtype=torch.float64)]
    assert group_rms([one, other], layouts(one, other), [None, None]) == pytest.approx([1.0, 0.5])
    (rms,) = group_rms([[torch.tensor([1.0, NAN])]], layouts([torch.zeros(2)]), [None])
    assert math.isnan(rms)
    half = [torch.full((4,), 300.0, dtype=torch.float16)]
    assert group_rms([half], layouts(half), [None]) == pytest.approx([300.0])


@pytest.mark.parametrize(("enough", "is_read"), [(1e-3, [1, 0, 0, 0]), (0.52, [1, 1, 1, 0]), (0.6, [1, 1, 1, 1])])
def test_reading_stops_where_the_value_is_enough(enough, is_read):
    """Of 1, 2, 4, ... tensors more each time."""
    grads = [torch.full((25,), value) for value in (0.3, 1.0, 0.3, 0.1)]
    whole = math.sqrt((0.09 + 1 + 0.09 + 0.01) / 4)
    poisoned = [grad if read else torch.full((25,), NAN) for grad, read in zip(grads, is_read, strict=True)]
    (rms,) = group_rms([poisoned], layouts(poisoned), [enough])
    assert (rms >= enough) == (whole >= enough) and rms <= whole + 1e-6
    if whole < enough:
        assert rms == pytest.approx(whole)


def test_what_no_gate_looks_at_is_not_read():
    poisoned, other = [torch.full((3,), NAN)], [torch.ones(2)]
    assert group_rms([poisoned, other], layouts(poisoned, other), [0.0, None]) == [0.0, pytest.approx(1.0)]


def test_a_shard_asks_for_as_much_as_the_whole_tensor_needs():
    """Half of a tensor whose other half is zero has twice the mean square of the whole."""
    half = torch.full((2,), 1.0)
    whole = Pieces((Piece("a", 1, (4,), 0, 2, 0),))
    poisoned = torch.full((2,), NAN)
    other = Pieces((Piece("b", 2, (2,), 0, 2, 0),))
    # the sum of squares is 2, and 6 elements of 0.55 would have 1.8
    (rms,) = group_rms([[half, poisoned]], [[whole, other]], [0.55])
    assert rms >= 0.55
    (rms,) = group_rms([[half, torch.zeros(2)]], [[whole, other]], [0.65])
    assert rms == pytest.approx(math.sqrt(2 / 4))


@pytest.mark.parametrize("make", [
    lambda p: Frugal([{"params": [p], "role": "split"}], density=0.0, **GATE),
    lambda p: AuON([{"params": [p], "role": "matrix"}], weight_decay=0.0, **GATE),
])  # fmt: skip
@pytest.mark.parametrize(("size", "moves"), [(2e-3, True), (5e-4, False)])
def test_a_quiet_gradient_moves_nothing_without_the_check_for_nan(make, size, moves):
    parameter = torch.nn.Parameter(torch.ones(8, 8))
    parameter.grad = torch.full((8, 8), size)
    make(parameter).step()
    assert bool((parameter != 1).any()) is moves

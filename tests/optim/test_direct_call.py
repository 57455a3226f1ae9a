"""Compiled functions called past torch.compile's checks: any views and sizes, and the checked way where it must be."""

import pytest
import torch

from rlhf.optim import direct_call
from rlhf.optim.direct_call import DirectCall
from rlhf.optim.kernels import can_compile

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_compile("cpu"), reason="torch.compile finds no C++ compiler here"),
]


def add_and_scale(factor_1, kept_A, read_A, kept_B, read_BK):
    kept_A.copy_(kept_A + factor_1 * read_A)
    kept_B.copy_(kept_B * factor_1 + read_BK.sum(1))


def arguments(a, b, k, offset):
    """Views that begin anywhere in their storages."""
    generator = torch.Generator().manual_seed(a)
    flat = [torch.rand(n + offset, generator=generator)[offset:] for n in (1, a, a, b, b * k)]
    return [*flat[:-1], flat[-1].view(b, k)]


@pytest.fixture(scope="module")
def call():
    return DirectCall(add_and_scale, arguments(50, 20, 7, 0))


@pytest.mark.parametrize("sizes", [(50, 20, 7, 0), (33, 1001, 4, 3), (4096, 5, 16, 1), (20, 20, 2, 2)])
def test_any_sizes_and_views(call, sizes):
    assert call.is_direct, "inductor's interior has changed: every call is checked, and slow"
    ours, theirs = arguments(*sizes), arguments(*sizes)
    call(*ours)
    add_and_scale(*theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_large_tensors_are_checked(call, monkeypatch):
    ours, theirs = arguments(60, 30, 7, 1), arguments(60, 30, 7, 1)
    monkeypatch.setattr(direct_call, "SMALL_INDEX", 10)
    monkeypatch.setattr(call, "_inner", lambda values: pytest.fail("called directly"))
    call(*ours)
    add_and_scale(*theirs)
    torch.testing.assert_close(ours, theirs)


def test_a_function_whose_arguments_are_not_all_used_is_checked():
    def fill(kept_A, unused_A):
        kept_A.copy_(torch.ones_like(kept_A))

    call = DirectCall(fill, [torch.zeros(40), torch.zeros(40)])
    assert not call.is_direct
    kept = torch.zeros(9)
    call(kept, torch.zeros(9))
    assert kept.tolist() == [1] * 9

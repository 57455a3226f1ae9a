"""Compiled kernels: equal to the rules on lists of tensors, compiled once whatever the views, seen by autograd."""

import pytest
import torch
from torch._dynamo.utils import counters

from rlhf.optim import kernels
from rlhf.optim.direct_call import DirectCall
from rlhf.optim.kernels import can_compile, update_compiled
from rlhf.optim.rules import RULES
from rlhf.optim.state_free import STATE_FREE_RULES

HAS_COMPILER = pytest.mark.skipif(not can_compile("cpu"), reason="torch.compile finds no C++ compiler here")
GROUP = {
    "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "eps_mode": "accumulate", "weight_decouple": True,
    "fixed_decay": False, "rectify": False, "degenerated_to_sgd": True, "amsgrad": False,
}  # fmt: skip


def operands(sizes, moments, dtype=torch.float32):
    """Views at various places of larger tensors: beginnings, middles, equal and unequal ones."""
    generator = torch.Generator().manual_seed(len(sizes))
    every = []
    for index, size in enumerate(sizes):
        whole = [torch.rand(size + 9, generator=generator, dtype=dtype) + 0.1 for _ in range(2 + moments)]
        param, grad, *rest = [each[(index * (place + 1)) % 5 :][:size] for place, each in enumerate(whole)]
        every.append((param, grad, rest))
    return every


def copied(every):
    return [(param.clone(), grad.clone(), [each.clone() for each in moments]) for param, grad, moments in every]


@pytest.mark.slow
@HAS_COMPILER
@pytest.mark.parametrize(
    ("rule", "dtype"),
    [(RULES["adamw"], torch.float32), (RULES["adabelief"], torch.float64), (STATE_FREE_RULES["sign"], torch.float32)],
    ids=["adamw", "adabelief", "sign"],
)
def test_a_kernel_does_what_the_rule_does_on_lists(rule, dtype, monkeypatch):
    # less to compile
    monkeypatch.setattr(kernels, "TENSORS", 2)
    every = operands([300] * 5 + [2, 301], len(rule.moments(GROUP)), dtype)
    numbers = {"decay": 0.9} | dict(rule.numbers(GROUP, 1e-2, 3.0))
    expected = copied(every)
    params, grads, moments = zip(*expected, strict=True)
    rule.foreach(list(params), list(grads), [list(each) for each in zip(*moments, strict=True)], numbers)
    update_compiled(rule, every, numbers)
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-8}
    for (param, _, moments), (want_param, _, want_moments) in zip(every, expected, strict=True):
        torch.testing.assert_close([param, *moments], [want_param, *want_moments], **tolerance)


@pytest.fixture
def traced_only(monkeypatch):
    """torch.compile without its last stage: what is compiled, and how often, is decided before it."""
    monkeypatch.setattr(DirectCall, "_backend", lambda self, graph, samples: graph)
    kernels._compile.cache_clear()
    torch._dynamo.reset()
    yield
    kernels._compile.cache_clear()


def test_views_sizes_steps_and_learning_rates_share_a_kernel(traced_only):
    rule = RULES["adamw"]
    update_compiled(rule, operands([64] * 9 + [70], 2), rule.numbers(GROUP, 1e-2, 1.0))
    before = counters["stats"]["unique_graphs"]
    for step, sizes in enumerate([[64] * 17, [1000, 1001, 1002], [5000] * 8 + [64]], start=2):
        update_compiled(rule, operands(sizes, 2), rule.numbers(GROUP, 1e-2 / step, float(step)))
    assert counters["stats"]["unique_graphs"] == before


def test_many_kinds_of_kernels_are_compiled_in_one_process(traced_only):
    """torch refuses more than eight versions of one function."""
    kinds = [
        GROUP | {"rectify": rectify, "amsgrad": amsgrad, "degenerated_to_sgd": sgd}
        for rectify in (False, True) for amsgrad in (False, True) for sgd in (False, True)
    ]  # fmt: skip
    for group in kinds:
        for dtype in (torch.float32, torch.float64):
            for step in (1.0, 9.0):
                rule = RULES["adabelief"]
                update_compiled(rule, operands([10], len(rule.moments(group)), dtype), rule.numbers(group, 1e-3, step))


def test_autograd_notices_the_change(traced_only):
    parameter = torch.ones(10, requires_grad=True)
    loss = (parameter * parameter).sum()
    with torch.no_grad():
        rule = STATE_FREE_RULES["sgd"]
        update_compiled(rule, [(parameter, torch.ones(10), [])], {"decay": 1.0} | dict(rule.numbers(GROUP, 0.5, 1.0)))
    assert parameter.tolist() == [0.5] * 10
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()

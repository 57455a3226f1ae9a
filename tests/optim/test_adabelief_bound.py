"""AdaBelief's bound on the RMS of each tensor's step."""

import pytest
import torch

from rlhf.optim import AdaBelief
from rlhf.optim.kernels import can_compile
from rlhf.optim.layout import Piece, Pieces, attach
from tests.optim.test_adabelief import DECAYS, DOUBLE, trajectory


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("decay", DECAYS)
def test_a_bound_that_is_not_reached_changes_no_bit(decay, dtype):
    plain, state = trajectory(6, dtype, **DECAYS[decay])
    bounded, bounded_state = trajectory(6, dtype, max_update_rms=10.0, **DECAYS[decay])
    for one, other in zip(plain, bounded, strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(state[name], bounded_state[name]) for name in state)


def test_the_bound_holds_for_each_tensor_and_does_not_turn_its_step():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(300, 1000, generator=generator), torch.randn(10, generator=generator)]
    grads = [torch.randn(tensor.shape, generator=generator) for tensor in start]
    settings = {"lr": 1e-2, "weight_decay": 0.1}
    plain, bounded = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    unbounded_optimizer, optimizer = AdaBelief(plain, **settings), AdaBelief(bounded, **settings, max_update_rms=0.5)
    for one, other, grad in zip(plain, bounded, grads, strict=True):
        one.grad, other.grad = grad, grad
    unbounded_optimizer.step()
    optimizer.step()
    for tensor, one, other in zip(start, plain, bounded, strict=True):
        decayed = tensor * (1 - 1e-3)
        step = other.detach() - decayed
        assert float(step.double().square().mean().sqrt()) == pytest.approx(0.5e-2, rel=1e-5)
        free = one.detach() - decayed
        torch.testing.assert_close(step, free * (0.5e-2 / free.double().square().mean().sqrt()), rtol=1e-4, atol=1e-7)
        assert torch.equal(unbounded_optimizer.state[one]["exp_avg_var"], optimizer.state[other]["exp_avg_var"])


def test_each_tensor_of_a_flat_partition_has_its_own_bound_and_padding_stays():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 5, generator=generator, dtype=DOUBLE) for _ in range(2))
    grads = [torch.randn(6, 5, generator=generator, dtype=DOUBLE), torch.zeros(6, 5, dtype=DOUBLE)]
    grads[1][0, 0] = 1.0
    whole = [torch.nn.Parameter(tensor.clone()) for tensor in (first, second)]
    for parameter, grad in zip(whole, grads, strict=True):
        parameter.grad = grad
    gap = torch.full((3,), 7.0, dtype=DOUBLE)
    flat = torch.nn.Parameter(torch.cat([first.flatten(), gap, second.flatten()]))
    flat.grad = torch.cat([grads[0].flatten(), gap * 0, grads[1].flatten()])
    attach(flat, Pieces((Piece("a", 1, (6, 5), 0, 30, 0), Piece("b", 2, (6, 5), 0, 30, 33))))
    for parameters in (whole, [flat]):
        AdaBelief(parameters, lr=1e-2, max_update_rms=0.25).step()
    expected = torch.cat([whole[0].flatten(), gap, whole[1].flatten()]).detach()
    torch.testing.assert_close(flat.detach(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_the_bound_is_kept_with_small_state(state_dtype):
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(700, 700))
    optimizer = AdaBelief([parameter], lr=1e-2, max_update_rms=0.5, state_dtype=state_dtype)
    for _ in range(3):
        before = parameter.detach().clone()
        parameter.grad = torch.randn(700, 700, generator=generator)
        optimizer.step()
        rms = float((parameter.detach() - before).double().square().mean().sqrt())
        # the step is measured before its moments are rounded
        assert rms == pytest.approx(0.5e-2, rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile("cpu"), reason="torch.compile finds no C++ compiler on this machine")
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
def test_compiled_steps_are_those_of_lists(state_dtype):
    """Small and large tensors of two precisions, with a bound that binds in some, and a decay of either kind."""
    generator = torch.Generator().manual_seed(3)
    shapes = [((3,), torch.float32), ((200, 256), torch.float32), ((130, 256), torch.float64)]
    start = [torch.randn(shape, generator=generator, dtype=dtype) for shape, dtype in shapes]
    grads = [[torch.randn(p.shape, generator=generator, dtype=p.dtype) + 0.5 for p in start] for _ in range(3)]
    for settings in ({"weight_decay": 0.1}, {"weight_decay": 0.1, "weight_decouple": False, "amsgrad": True}):
        results = []
        for impl in ("foreach", "compiled"):
            parameters = [torch.nn.Parameter(p.clone()) for p in start]
            optimizer = AdaBelief(
                parameters, lr=1e-2, max_update_rms=0.9, impl=impl, state_dtype=state_dtype, **settings
            )
            for of_step in grads:
                for parameter, grad in zip(parameters, of_step, strict=True):
                    parameter.grad = grad.clone()
                optimizer.step()
            results.append([parameter.detach() for parameter in parameters])
        # chances round values that differ in their last digit to different neighbours, rarely
        tolerance = 1e-6 if state_dtype == "float32" else 2e-3
        for lists, compiled in zip(*results, strict=True):
            torch.testing.assert_close(compiled, lists, rtol=0, atol=tolerance)

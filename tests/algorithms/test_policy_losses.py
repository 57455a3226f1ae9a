"""Policy losses and KL estimators: values by hand, gradients by autograd, estimators by their expectations."""

import math

import pytest
import torch

from rlhf.algorithms import policy_losses
from rlhf.algorithms.aggregation import StepTotals, token_weight
from rlhf.algorithms.kl import kl_estimate
from rlhf.algorithms.mismatch import mismatch_weight


def loss_and_slope(function, log_ratio: float, advantage: float) -> tuple[float, float]:
    x = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    loss = function(x, torch.tensor([advantage], dtype=torch.float64)).sum()
    loss.backward()
    return float(loss), float(x.grad)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside: -r A, derivative in log r is the same
        (1.5, 2.0, -2.6, 0.0),  # above 1 + 0.3 with a positive advantage: flat
        (0.5, 2.0, -1.0, -1.0),  # below with a positive advantage: not clipped
        (0.5, -2.0, 1.6, 0.0),  # below 1 - 0.2 with a negative advantage: flat
        (1.5, -2.0, 3.0, 3.0),  # above with a negative advantage: not clipped
    ],
)
def test_clipped_surrogate(ratio, advantage, loss, slope):
    def function(x, a):
        return policy_losses.clipped_surrogate(x, a, clip_low=0.2, clip_high=0.3)

    assert loss_and_slope(function, math.log(ratio), advantage) == pytest.approx((loss, slope))


def test_dual_clip_bounds_the_loss_of_negative_advantages_only():
    def function(x, a):
        return policy_losses.clipped_surrogate(x, a, clip_low=0.2, clip_high=0.2, dual_clip=3.0)

    assert loss_and_slope(function, math.log(10), -1.0) == pytest.approx((3.0, 0.0))
    assert loss_and_slope(function, math.log(2), -1.0) == pytest.approx((2.0, 2.0))
    assert loss_and_slope(function, math.log(10), 1.0) == pytest.approx((-1.2, 0.0))


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    log_ratio = torch.tensor([math.log(5.0)])
    logp = torch.tensor([-1.0], requires_grad=True)
    loss = policy_losses.cispo(log_ratio, logp, torch.tensor([2.0]), clip_low=0.2, clip_high=0.5)
    loss.sum().backward()
    assert float(loss) == pytest.approx(1.5 * 2.0) and float(logp.grad) == pytest.approx(-3.0)


def test_sequence_log_ratio_is_the_mean_over_each_sequence():
    log_ratio = torch.tensor([1.0, 3.0, -1.0], requires_grad=True)
    result = policy_losses.sequence_log_ratio(log_ratio, torch.tensor([0, 0, 2]), 3)
    assert result.tolist() == [2.0, 2.0, -1.0]
    (result * torch.tensor([1.0, 0.0, 1.0])).sum().backward()
    assert log_ratio.grad.tolist() == [0.5, 0.5, 1.0]


def test_a_far_off_token_stays_finite():
    loss = policy_losses.clipped_surrogate(torch.tensor([200.0]), torch.tensor([-1.0]), clip_low=0.2, clip_high=0.2)
    assert bool(loss.isfinite())


def test_kl_estimators_on_a_small_distribution():
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, 0.4, 0.1], dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    exact = (logp.exp() * (logp - reference)).sum()
    exact_gradient = torch.autograd.grad(exact, logits, retain_graph=True)[0]
    p = logp.exp().detach()
    for name in ("k1", "k3"):
        assert float((p * kl_estimate(logp, reference, name)).sum()) == pytest.approx(float(exact), abs=1e-12)
    gradients = {
        name: torch.autograd.grad((p * kl_estimate(logp, reference, name)).sum(), logits, retain_graph=True)[0]
        for name in ("k1", "k2", "k3")
    }
    # as losses: k1 has no gradient in expectation, k2 that of the KL
    assert torch.allclose(gradients["k1"], torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(gradients["k2"], exact_gradient, atol=1e-12)
    assert bool((kl_estimate(logp, reference, "k3") >= 0).all())


@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_mismatch_weights(mode):
    learner, engine = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, -3.0, -1.5])
    sequence = torch.tensor([0, 0, 1])
    token = mismatch_weight(learner, engine, sequence, 2, level="token", mode=mode, cap=2.0)
    over = 2.0 if mode == "truncate" else 0.0
    assert token.tolist() == pytest.approx([1.0, over, math.exp(0.5)])
    whole = mismatch_weight(learner, engine, sequence, 2, level="sequence", mode=mode, cap=2.0)
    assert whole.tolist() == pytest.approx([over, over, math.exp(0.5)])


def test_denominators():
    totals = StepTotals(sequences=4, tokens=10)
    assert token_weight(5, totals, "token", 8) == 1 / 10
    assert token_weight(5, totals, "sequence", 8) == 1 / 20
    assert token_weight(5, totals, "constant", 8) == 1 / 32
    assert token_weight(0, totals, "sequence", 8) == 0.0

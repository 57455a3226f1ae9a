"""AuON's brake in the log domain against its log-domain form; no published numbers of it exist."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.optim import auon_rule


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_brake(u, gamma, largest=10.0):
    square_sum = auon_rule.sums_of_squares([u])
    scale = gamma * (u.numel() / square_sum).sqrt()
    limits = [auon_rule.log_limit(u.numel(), gamma, largest)]
    sums = auon_rule.sums_of_sinh_squares([u], scale, limits)
    return float(auon_rule.log_divisor(sums, torch.tensor([u.numel()]), gamma, largest))


def log_root(u, gamma):
    z = gamma * u.reshape(-1) / u.square().mean().sqrt()
    log_cosh = z.abs() + torch.log1p(torch.exp(-2 * z.abs())) - math.log(2)
    return float(0.5 * (torch.logsumexp(2 * log_cosh, 0) - math.log(u.numel())))


def test_reference_values_of_the_log_brake():
    signs = gaussian(64, 64).sign()
    assert math.exp(log_root(signs, 0.25)) == pytest.approx(1.0314, abs=5e-5)
    assert auon_rule._gaussian_divisor(0.25) == pytest.approx(1.0328, abs=5e-5)
    assert math.exp(log_root(gaussian(1000, 1000), 0.25)) == pytest.approx(1.0328, abs=1e-4)
    # lighter tails than gaussian are not amplified
    assert log_brake(signs, 1.5) == 1.0


@given(
    st.integers(1, 144), st.integers(0, 2**31), st.sampled_from([1, 3, 9]),
    st.sampled_from([0.25, 1.5]), st.sampled_from([1.5, 10.0]),
)  # fmt: skip
def test_the_log_brake_is_its_log_domain_form_whatever_is_cut(numel, seed, tail, gamma, largest):
    u = gaussian(numel, seed=seed).pow(tail)
    expected = min(max(1 + log_root(u, gamma) - math.log(auon_rule._gaussian_divisor(gamma)), 1.0), largest)
    assert log_brake(u, gamma, largest) == pytest.approx(expected, rel=1e-9)


def test_the_log_brake_acts_on_a_spike_and_stays_finite():
    u = gaussian(256, 256)
    u[0, 0] = 1e6
    assert log_brake(u, 0.25) == 10.0
    assert log_brake(gaussian(256, 256), 0.25) == pytest.approx(1, abs=1e-3)
    assert float((u * auon_rule.paper_scales([u], [u.numel()], "log")).norm()) == pytest.approx(0.1, rel=1e-6)

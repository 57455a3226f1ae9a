"""Optimism over an ensemble against its closed forms, and what it refuses."""

import math

import pytest
import torch

from rlhf.algorithms.optimism import (
    Optimism,
    confidence_radius,
    confidence_set,
    member_deviation,
    mex_term,
    optimistic_value,
)

MEMBERS = torch.tensor([0.2, 0.3, 0.25, 0.6, 0.4], dtype=torch.float64)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(kind="none"), 0.350), (dict(kind="mex"), 0.350), (dict(kind="min"), 0.2),
        (dict(kind="ucb", bonus_scale=1.0), 0.508114), (dict(kind="lme", temperature=0.1), 0.460053),
        (dict(kind="ucb", bonus_scale=10.0), 1.0),
    ],
)  # fmt: skip
def test_values_of_one_ensemble(settings, expected):
    assert float(optimistic_value(MEMBERS, Optimism(**settings))) == pytest.approx(expected, abs=1e-6)


def test_the_deviation_is_unbiased():
    assert float(member_deviation(MEMBERS)) == pytest.approx(0.158114, abs=1e-6)
    with pytest.raises(ValueError, match="at least 2 members"):
        member_deviation(MEMBERS[:1])


def test_log_mean_exp_lies_between_the_mean_and_the_maximum():
    for temperature, expected in ((1e4, 0.35), (1e-4, 0.6)):
        value = optimistic_value(MEMBERS, Optimism("lme", temperature=temperature))
        assert float(value) == pytest.approx(expected, abs=1e-3)


def test_the_maximum_is_taken_within_the_confidence_set():
    in_set_K = confidence_set(torch.tensor([0.01, 0.012, 0.011, 0.03, 0.02]), count=1000, radius=10.5)
    assert in_set_K.tolist() == [True, True, True, False, True]
    assert float(optimistic_value(MEMBERS, Optimism("max_in_set"), in_set_K=in_set_K)) == pytest.approx(0.4)
    assert confidence_set(torch.tensor([0.2, 0.1]), count=100, radius=0).tolist() == [False, True]
    with pytest.raises(ValueError, match="in_set_K"):
        optimistic_value(MEMBERS, Optimism("max_in_set"), in_set_K=torch.zeros(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="finite"):
        confidence_set(torch.tensor([0.1, math.nan]), count=1, radius=1)


def test_an_elliptic_bonus_is_added_to_the_mean_and_clipped():
    value_XK = MEMBERS.expand(2, 5)
    value_X = optimistic_value(value_XK, Optimism("elliptic", bonus_scale=2), bonus_X=torch.tensor([0.1, 5.0]))
    assert value_X.tolist() == pytest.approx([0.55, 1.0])
    with pytest.raises(ValueError, match="bonus_X"):
        optimistic_value(value_XK, Optimism("elliptic"))


def test_the_ensemble_is_the_last_axis():
    q_NKM = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0))
    value_NM = optimistic_value(q_NKM.mT, Optimism("ucb", bonus_scale=0.5))
    assert value_NM.shape == (3, 2)
    assert float(value_NM[1, 0]) == pytest.approx(float(q_NKM[1, :, 0].mean() + 0.5 * q_NKM[1, :, 0].std()))


def test_radius_and_mex_term():
    assert confidence_radius(value_range=2, members=10, count=100) == pytest.approx(4 * math.log(1000))
    value_BK = torch.full((3, 2), 0.5, requires_grad=True)
    term = mex_term(value_BK, alpha=0.2, episodes=4)
    term.backward()
    assert float(term.detach()) == pytest.approx(-0.05)
    assert bool((value_BK.grad < 0).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(kind="best"), "choose ucb"), (dict(bounds=(1.0, 1.0)), "bounds"),
        (dict(bonus_scale=-1.0), "bonus_scale"), (dict(kind="lme", temperature=0.0), "temperature"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Optimism(**settings)

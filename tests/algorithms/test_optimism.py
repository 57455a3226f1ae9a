"""Optimistic values of an ensemble against closed forms, and elliptic widths against dense linear algebra."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.algorithms.elliptic import GramMatrices, horizon_buckets, information_bound, relative_coverage
from rlhf.algorithms.optimism import (
    KINDS,
    Optimism,
    confidence_set,
    log_mean_exp,
    mex_loss,
    mex_weight,
    set_radius,
    upper_confidence,
)

ENSEMBLE = torch.tensor([0.2, 0.3, 0.25, 0.6, 0.4], dtype=torch.float64).reshape(1, 5, 1)


def test_the_operators_on_one_ensemble():
    assert Optimism("none")(ENSEMBLE).item() == pytest.approx(0.350)
    assert (upper_confidence(ENSEMBLE, 1.0) - ENSEMBLE.mean(1)).item() == pytest.approx(0.158114, abs=5e-7)
    assert Optimism("ucb", bonus=1.0)(ENSEMBLE).item() == pytest.approx(0.508114, abs=5e-7)
    assert Optimism("lme", temperature=0.1)(ENSEMBLE).item() == pytest.approx(0.460053, abs=5e-7)
    every = torch.ones(5, dtype=torch.bool)
    assert Optimism("max_in_set")(ENSEMBLE, in_set_K=every).item() == 0.6
    assert Optimism("max_in_set")(ENSEMBLE, in_set_K=torch.tensor([1, 1, 0, 0, 1]).bool()).item() == 0.4
    width = torch.full((1, 1), 0.2, dtype=torch.float64)
    assert Optimism("elliptic", bonus=0.5)(ENSEMBLE, width_Nm=width).item() == pytest.approx(0.45)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0, 3), st.floats(0.01, 10))
def test_optimism_is_between_the_mean_and_the_bound(values, bonus, temperature):
    q = torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)
    mean, greatest = q.mean().item(), q.max().item()
    assert mean - 1e-12 <= Optimism("ucb", bonus=bonus)(q).item() <= 1
    assert mean - 1e-12 <= log_mean_exp(q, temperature).item() <= greatest + 1e-12


def test_values_of_states_are_raised_as_those_of_actions_are():
    assert Optimism("ucb", bonus=1.0)(ENSEMBLE[:, :, 0]).item() == pytest.approx(0.508114, abs=5e-7)


def test_raised_values_stay_within_their_range():
    assert Optimism("ucb", bonus=9.0)(ENSEMBLE).item() == 1.0
    assert Optimism("none", v_min=0.4)(ENSEMBLE).item() == 0.4


def test_a_confidence_set_holds_the_best_member_and_grows_with_its_radius():
    loss = torch.tensor([0.010, 0.012, 0.050])
    assert confidence_set(loss, 1000, 2.5).tolist() == [True, True, False]
    assert confidence_set(loss, 1000, 0.0).tolist() == [True, False, False]
    assert confidence_set(loss, 1000, 41.0).all()
    assert set_radius(2.0, 16, 1000) == pytest.approx(4 * (math.log(16) + math.log(1000)))


def test_mex_pulls_the_values_of_prompts_up():
    value = torch.zeros(4, 3, requires_grad=True)
    mex_loss(torch.tensor(1.0), value, mex_weight(2.0, 16)).backward()
    torch.testing.assert_close(value.grad, torch.full((4, 3), -0.5 / 12))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Optimism("hope"), f"unknown kind of optimism 'hope': choose from {', '.join(KINDS)}"),
        (lambda: Optimism(v_min=1.0), "v_min must be below v_max"),
        (lambda: Optimism(bonus=-1.0), "bonus must be 0 or more, got -1.0"),
        (lambda: Optimism(temperature=0.0), "temperature must be above 0"),
        (lambda: Optimism()(ENSEMBLE[:, :1]), "ucb needs at least two members"),
        (lambda: Optimism("elliptic")(ENSEMBLE), "elliptic optimism needs width_Nm"),
        (lambda: Optimism("max_in_set")(ENSEMBLE), "max_in_set needs in_set_K"),
        (lambda: GramMatrices(0), "at least one feature and one bucket"),
        (lambda: GramMatrices(2, ridge=0.0), "ridge must be above 0"),
        (
            lambda: GramMatrices(2).add(torch.zeros(3, 4), torch.zeros(3).long()),
            r"features of shape \(3, 4\) .* expected \(N, 2\)",
        ),
        (lambda: GramMatrices(2).add(torch.zeros(1, 2), torch.tensor([4])), "buckets reach from 4 to 4: there are 4"),
        (lambda: GramMatrices(1).add(torch.tensor([[math.nan]]), torch.tensor([0])), "features are not finite"),
        (
            lambda: GramMatrices(2).load_state_dict(GramMatrices(3).state_dict()),
            r"matrices have shape \(4, 3, 3\) and these \(4, 2, 2\)",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def one_bucket(rows):
    return torch.zeros(len(rows), dtype=torch.long)


def test_the_information_of_actions_adds_up_to_the_log_determinant():
    phi = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 4)))
    gram = GramMatrices(4, buckets=1)
    nats = gram.add(phi, one_bucket(phi))
    assert nats.sum().item() == pytest.approx(15.235266933764, abs=1e-11)
    assert gram.logdet_G.item() == pytest.approx(15.235266933764, abs=1e-11)
    dense = torch.eye(4, dtype=torch.float64)
    for row, found in zip(phi, nats, strict=True):
        assert found.item() == pytest.approx(math.log1p(row @ torch.linalg.solve(dense, row)), rel=1e-10)
        dense += torch.outer(row, row)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(0, 600), st.integers(1, 4), st.floats(0.01, 10), st.integers(0, 99))
def test_incremental_matrices_are_the_dense_ones(features, count, buckets, ridge, seed):
    generator = torch.Generator().manual_seed(seed)
    phi = torch.nn.functional.normalize(torch.randn(count, features, generator=generator), dim=-1)
    bucket = torch.randint(buckets, (count,), generator=generator)
    gram = GramMatrices(features, buckets=buckets, ridge=ridge)
    nats = torch.cat([gram.add(phi[part], bucket[part]) for part in torch.arange(count).split(97)]) if count else phi
    width = gram.width(phi, bucket)
    for g in range(buckets):
        rows = phi[bucket == g].double()
        dense = ridge * torch.eye(features, dtype=torch.float64) + rows.t() @ rows
        logdet = torch.logdet(dense) - features * math.log(ridge)
        torch.testing.assert_close(gram.logdet_G[g], logdet, rtol=1e-6, atol=1e-9)
        if len(rows):
            torch.testing.assert_close(nats[bucket == g].sum(), logdet, rtol=1e-6, atol=1e-9)
            expected = (rows * torch.linalg.solve(dense, rows.t()).t()).sum(1).sqrt()
            torch.testing.assert_close(width[bucket == g], expected, rtol=1e-6, atol=1e-9)
    assert gram.logdet_G.sum() <= buckets * information_bound(features, count, ridge) + 1e-9


def test_matrices_go_on_from_a_checkpoint():
    torch.manual_seed(0)
    first, second = torch.rand(2, 20, 3)
    whole, part = GramMatrices(3, buckets=1), GramMatrices(3, buckets=1)
    for gram in (whole, part):
        gram.add(first, one_bucket(first))
    resumed = GramMatrices(3, buckets=1)
    resumed.load_state_dict(part.state_dict())
    assert torch.equal(whole.add(second, one_bucket(second)), resumed.add(second, one_bucket(second)))
    assert resumed.actions == 40


def test_positions_fall_into_equal_parts_of_the_horizon():
    assert horizon_buckets(torch.tensor([0, 7, 8, 15, 16, 31, 32, 99]), 32, 4).tolist() == [0, 0, 1, 1, 2, 3, 3, 3]


def test_coverage_is_the_number_of_features_for_actions_like_the_datas():
    torch.manual_seed(0)
    phi = torch.nn.functional.normalize(torch.randn(4000, 5), dim=-1)
    gram = GramMatrices(5, buckets=1)
    gram.add(phi, one_bucket(phi))
    assert relative_coverage(gram, phi, one_bucket(phi)) == pytest.approx(5, rel=0.01)
    narrow = GramMatrices(2, buckets=1)
    narrow.add(torch.tensor([[1.0, 0.0]]).expand(99, 2), one_bucket(phi[:99]))
    assert relative_coverage(narrow, torch.tensor([[0.0, 1.0]]), one_bucket(phi[:1])) == pytest.approx(99)

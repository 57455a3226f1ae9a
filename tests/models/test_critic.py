"""An ensemble of critics: shapes, bounds, advantages that average out, and priors that the seed alone decides."""

import pytest
import torch

from rlhf.models.critic import DuelingEnsemble, ValueEnsemble

STATES, HIDDEN, EMBEDDING, CANDIDATES, MEMBERS = 40, 16, 12, 5, 6


def made(**settings):
    return DuelingEnsemble(HIDDEN, **{"embedding_size": EMBEDDING, "members": MEMBERS, "seed": 3} | settings)


def inputs(states=STATES):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(states, HIDDEN, generator=generator)
    candidates = torch.randn(states, CANDIDATES, EMBEDDING, generator=generator)
    # the rest of the vocabulary has some mass too
    return hidden, candidates, torch.randn(states, CANDIDATES + 3, generator=generator).log_softmax(-1)[:, :CANDIDATES]


def trained(critic):
    """Parameters away from their first values."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(torch.randn_like(parameter))
    return critic


def test_nothing_has_an_axis_longer_than_the_candidates():
    values = made()(*inputs())
    assert values.value_NK.shape == (STATES, MEMBERS) and values.q_NKm.shape == (STATES, MEMBERS, CANDIDATES)
    assert ValueEnsemble(HIDDEN, members=MEMBERS, seed=0)(inputs()[0]).shape == (STATES, MEMBERS)


def test_values_are_within_their_range_whatever_the_parameters_are():
    critic = made(v_min=-1.0, v_max=3.0, prior_scale=5.0)
    with torch.no_grad():
        critic.value_weight_Kd.mul_(1e4)
    values = critic.values(inputs()[0])
    assert values.min() >= -1 and values.max() <= 3


def test_advantages_have_mean_zero_under_the_reference_policy():
    hidden, candidates, logp = inputs()
    value, q = trained(made())(hidden, candidates, logp)
    mean = (logp.exp().unsqueeze(1) * (q - value.unsqueeze(-1))).sum(-1)
    torch.testing.assert_close(mean, torch.zeros(STATES, MEMBERS), atol=2e-5, rtol=0)
    assert (q - value.unsqueeze(-1)).std() > 0.1


def test_a_place_without_a_candidate_changes_nothing_for_the_others():
    hidden, candidates, logp = inputs()
    critic = trained(made())
    wide = torch.cat([candidates, torch.full((STATES, 1, EMBEDDING), 7.0)], dim=1)
    padded = critic(hidden, wide, torch.cat([logp, torch.full((STATES, 1), -torch.inf)], dim=1))
    torch.testing.assert_close(padded.q_NKm[:, :, :-1], critic(hidden, candidates, logp).q_NKm)


def test_an_action_value_is_the_formula():
    hidden, candidates, logp = inputs(1)
    critic = trained(made(members=1, prior_scale=0.0))
    x = torch.nn.functional.layer_norm(hidden[0], (HIDDEN,))
    raw = (x @ critic.advantage_Kde[0]) @ candidates[0].t() / HIDDEN**0.5
    value = torch.sigmoid(critic.value_weight_Kd[0] @ x + critic.value_bias_K[0])
    expected = value + raw - (logp[0].exp() * raw).sum() / logp[0].exp().sum()
    torch.testing.assert_close(critic(hidden, candidates, logp).q_NKm[0, 0], expected)


def test_members_disagree_by_about_the_prior_scale_before_they_have_learned():
    hidden, candidates, logp = inputs(400)
    value, q = made(members=32, prior_scale=0.1)(hidden, candidates, logp)
    assert value.std(1).mean().item() == pytest.approx(0.1, rel=0.15)
    assert (q - value.unsqueeze(-1)).std(1).mean().item() == pytest.approx(0.1, rel=0.3)


def test_without_a_prior_members_start_at_the_initial_value():
    hidden, candidates, logp = inputs()
    for initial, expected in ((None, 0.5), (0.02, 0.02)):
        value, q = made(prior_scale=0.0, initial_value=initial)(hidden, candidates, logp)
        torch.testing.assert_close(value, torch.full_like(value, expected), atol=0.01, rtol=0)
        torch.testing.assert_close(q, value.unsqueeze(-1).expand_as(q))


def test_the_seed_decides_everything_and_members_are_distinct():
    one, same, other = made(), made(), made(seed=4)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
    for prior in (one.prior_weight_Kd, one.prior_Kde):
        assert len({tuple(member.flatten().tolist()) for member in prior}) == MEMBERS
    assert not torch.equal(one.prior_Kde, other.prior_Kde)


def test_a_larger_ensemble_holds_the_smaller_one():
    small, large = made(members=2), made(members=5)
    assert torch.equal(small.prior_Kde, large.prior_Kde[:2])


def test_priors_are_in_the_state_and_learn_nothing():
    critic = made()
    assert {"prior_weight_Kd", "prior_Kde"} <= critic.state_dict().keys()
    assert not {"prior_weight_Kd", "prior_Kde"} & dict(critic.named_parameters()).keys()
    copy = made(seed=9)
    copy.load_state_dict(critic.state_dict())
    assert torch.equal(copy(*inputs()).q_NKm, critic(*inputs()).q_NKm)


def test_no_gradient_reaches_the_trunk_of_the_priors():
    hidden, candidates, logp = inputs()
    prior_hidden = torch.randn(STATES, 8, requires_grad=True)
    hidden.requires_grad_()
    critic = trained(made(prior_hidden_size=8))
    critic(hidden, candidates, logp, prior_hidden).q_NKm.sum().backward()
    assert prior_hidden.grad is None and hidden.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in critic.parameters())


def test_an_ensemble_fits_values_and_agrees_where_it_has_data():
    hidden, candidates, logp = inputs(10)
    critic = made(prior_scale=0.3)
    target = torch.rand(10, CANDIDATES)
    optimizer = torch.optim.Adam(critic.parameters(), 0.02)
    before = critic(hidden, candidates, logp).q_NKm.std(1).mean()
    for _ in range(400):
        loss = (critic(hidden, candidates, logp).q_NKm - target.unsqueeze(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = critic(hidden, candidates, logp).q_NKm.std(1).mean()
    assert loss < 1e-3 and after < before / 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 0}, "at least one member, got 0"),
        ({"v_min": 1.0, "v_max": 1.0}, "v_min must be below v_max"),
        ({"prior_scale": -1.0}, r"prior_scale must be 0 \(no prior\) or more, got -1.0"),
        ({"initial_value": 1.0}, r"initial_value must be within \(0.0, 1.0\), got 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)


def test_inputs_of_other_shapes_are_named():
    hidden, candidates, logp = inputs()
    with pytest.raises(ValueError, match=r"hidden states of shape \(40, 15\)"):
        made()(hidden[:, :-1], candidates, logp)
    with pytest.raises(ValueError, match=r"for 40 states: expected \(N, m, 12\) and \(N, m\)"):
        made()(hidden, candidates[:-1], logp)

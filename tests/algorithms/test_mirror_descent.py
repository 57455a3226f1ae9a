"""The policy between switches: the closed form of multiplicative updates, schedules, resets and the matching loss."""

import math

import pytest
import torch

from rlhf.algorithms.mirror_descent import (
    RESET_MODES,
    KappaSchedule,
    MirrorDescent,
    guided_logits,
    logit_match_losses,
    mirror_target,
    with_rest,
)


def policies(states=7, vocabulary=9, candidates=5):
    torch.manual_seed(0)
    logp = torch.randn(states, vocabulary, dtype=torch.float64).log_softmax(-1)
    return logp, with_rest(logp[:, :candidates]), torch.rand(states, candidates, dtype=torch.float64)


def test_the_closed_form_is_n_multiplicative_updates():
    _, base, q = policies()
    eta, n = 0.37, 25
    policy = base.exp()
    # the rest bucket has the candidates' mean under the base
    share = base[:, :-1].exp() / base[:, :-1].exp().sum(-1, keepdim=True)
    values = torch.cat([q, (share * q).sum(-1, keepdim=True)], dim=-1)
    stepwise = base
    for _ in range(n):
        policy = policy * (eta * values).exp()
        policy = policy / policy.sum(-1, keepdim=True)
    torch.testing.assert_close(mirror_target(base, q, n * eta).exp(), policy, atol=1e-12, rtol=1e-10)
    # and candidates alone stand to each other as in n updates of what the target before was, whatever its rest
    for _ in range(n):
        stepwise = mirror_target(stepwise, q, eta)
    relative = [target[:, :-1] - target[:, :1] for target in (stepwise, policy.log())]
    torch.testing.assert_close(*relative, atol=1e-9, rtol=1e-9)


def phases_until_right(mode):
    """A wrong critic for 1,000 phases, gap 0.3, then the right one, gap 0.1; phases until pi(best) is 0.95."""
    schedule = KappaSchedule("saturate", kappa_max=0.5 * 10_000, n_sat=10_000)
    actor = MirrorDescent(schedule, mode)
    reference = torch.tensor([[1 / 3] * 3 + [0.0]], dtype=torch.float64).log()
    wrong, right = torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.1, 0.0]], dtype=torch.float64).unsqueeze(1)
    target = reference

    def phase(q):
        nonlocal target
        actor.advance()
        target = mirror_target(target if actor.starts_from_previous else reference, q, actor.kappa)
        return target[0, 1].exp()

    for _ in range(1000):
        phase(wrong)
    actor.reset()
    count = 1
    while phase(right) < 0.95:
        count += 1
    return count


@pytest.mark.parametrize(("mode", "phases"), [("target", 73), ("hard", 73), ("jump", 1), ("none", 3059)])
def test_a_reset_is_what_forgets_a_wrong_critic(mode, phases):
    assert phases_until_right(mode) == phases


@pytest.mark.parametrize("mode", RESET_MODES)
def test_n_after_a_switch(mode):
    actor = MirrorDescent(KappaSchedule(n_sat=8, kappa_max=20.0), mode)
    assert actor.n == (8 if mode == "jump" else 0)
    for _ in range(3):
        actor.advance()
    before = actor.n
    actor.reset()
    assert actor.n == {"target": 0, "hard": 0, "jump": 8, "none": before}[mode]
    assert actor.reloads_reference == (mode == "hard") and actor.starts_from_previous == (mode == "none")
    if mode == "jump":
        actor.advance()
        assert actor.kappa == 20.0


@pytest.mark.parametrize(
    ("schedule", "first", "saturation"),
    [
        (KappaSchedule("saturate", kappa_max=20.0, n_sat=8), 2.5, 8),
        (KappaSchedule("anytime", kappa_max=20.0, kl_budget=4.0), 2.0, 100),
        (KappaSchedule("anytime", kappa_max=20.0, kl_budget=4.0, value_range=2.0), 1.0, 400),
        (KappaSchedule("theory", kappa_max=1.0, total_phases=1000, candidates=3), math.sqrt(math.log(3) / 1000), 31),
    ],
)
def test_schedules_rise_to_their_maximum_and_stay(schedule, first, saturation):
    assert schedule.kappa(0) == 0 and schedule.kappa(1) == pytest.approx(first)
    assert schedule.saturation == saturation
    values = [schedule.kappa(n) for n in range(2 * saturation)]
    assert values == sorted(values)
    assert values[saturation] == schedule.kappa_max > values[saturation - 1]


def test_kappa_that_moves_an_action_to_0_95():
    for probability, gap, kappa in ((0.5, 0.5, 5.9), (0.5, 0.1, 29.4), (0.1, 0.1, 51.4), (1e-4, 0.5, 24.3)):
        base = torch.tensor([[probability, 1 - probability, 0.0]], dtype=torch.float64).log()
        target = mirror_target(base, torch.tensor([[gap, 0.0]], dtype=torch.float64), kappa).exp()
        assert target[0, 0].item() == pytest.approx(0.95, abs=1e-3)


def test_the_target_does_not_change_with_a_constant_in_the_values():
    _, base, q = policies()
    torch.testing.assert_close(mirror_target(base, q, 5.0), mirror_target(base, q + 3.0, 5.0))


def test_a_place_without_a_candidate_stays_without():
    base = torch.tensor([[0.3, 0.0, 0.7]], dtype=torch.float64).log()
    target = mirror_target(base, torch.tensor([[1.0, 9.0]], dtype=torch.float64), 2.0)
    torch.testing.assert_close(target.exp(), base.exp())
    loss = logit_match_losses(target, base.clone().requires_grad_())
    assert loss.item() == pytest.approx(0, abs=1e-15)


def test_matching_is_the_divergence_over_candidates_and_rest():
    logp, base, q = policies()
    target = mirror_target(base, q, 3.0)
    expected = torch.nn.functional.kl_div(base, target, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(logit_match_losses(target, base), expected)
    torch.testing.assert_close(base[:, -1].exp(), logp[:, 5:].exp().sum(-1))
    assert (logit_match_losses(target, base) > 0).all()


def test_gradients_equal_finite_differences():
    _, base, q = policies(states=2)
    target = mirror_target(base, q, 3.0)
    logits = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: logit_match_losses(target, with_rest(x.log_softmax(-1)[:, :5])), (logits,)
    )


def test_candidates_that_are_the_whole_vocabulary_leave_nothing_and_train():
    logits = torch.zeros(1, 4, requires_grad=True)
    base = with_rest(torch.full((1, 4), 0.25).log())
    target = mirror_target(base, torch.tensor([[1.0, 0.0, 0.0, 0.0]]), 4.0)
    logit_match_losses(target, with_rest(logits.log_softmax(-1))).sum().backward()
    assert logits.grad.isfinite().all() and logits.grad[0, 0] < 0
    assert base[0, -1].exp() < 1e-6


def test_the_state_goes_on_from_a_checkpoint():
    actor = MirrorDescent(KappaSchedule(), "target")
    actor.advance()
    resumed = MirrorDescent(KappaSchedule(), "target")
    resumed.load_state_dict(actor.state_dict())
    assert resumed.n == 1 and resumed.kappa == actor.kappa
    with pytest.raises(ValueError, match="resets by 'target', and this run by 'jump'"):
        MirrorDescent(KappaSchedule(), "jump").load_state_dict(actor.state_dict())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KappaSchedule("linear"), "unknown schedule 'linear'"),
        (lambda: KappaSchedule(kappa_max=math.inf), "kappa_max must be above 0 and finite"),
        (lambda: KappaSchedule(n_sat=0), "n_sat must be above 0"),
        (lambda: KappaSchedule(candidates=1), "candidates must be at least 2"),
        (lambda: MirrorDescent(KappaSchedule(), "soft"), "unknown reset mode 'soft': choose from target, hard"),
    ],
)
def test_settings_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_guided_logits_are_the_target_over_the_whole_vocabulary(temperature):
    torch.manual_seed(0)
    logits, q, kappa = torch.randn(7, 50, dtype=torch.float64), torch.rand(7, 5, dtype=torch.float64), 12.0
    ids = logits.topk(5, dim=-1).indices
    guided = (guided_logits(logits, ids, q, kappa, temperature) / temperature).softmax(-1)
    base = (logits / temperature).softmax(-1)
    for row in range(7):
        mean = sum(base[row, i] * q[row, place] for place, i in enumerate(ids[row])) / base[row, ids[row]].sum()
        weight = base[row].clone()
        for place, i in enumerate(ids[row]):
            weight[i] = base[row, i] * math.exp(kappa * (q[row, place] - mean))
        torch.testing.assert_close(guided[row], weight / weight.sum(), atol=1e-14, rtol=1e-12)
    # what a policy would be matched to: the candidates, and the others together
    target = mirror_target(with_rest(base.gather(-1, ids).log()), q, kappa).exp()
    torch.testing.assert_close(guided.gather(-1, ids), target[:, :-1], atol=1e-14, rtol=1e-10)
    assert torch.equal(guided_logits(logits, ids, q, 0.0, temperature), logits)

"""Steps of many tokens, Gram matrices, objectives other than the surrogate, and supports of a few ids."""

import math
from functools import partial

import pytest
import torch

from rlhf.algorithms.aggregate_steps import mean_step_shifts, proposed_step, step_shifts
from rlhf.algorithms.curvature import token_shifts
from rlhf.algorithms.gradient_gram import score_gram
from rlhf.algorithms.kl import kl_estimate
from rlhf.algorithms.objective_derivatives import k3_penalty, log_prob_surrogate, ratio_surrogate
from rlhf.algorithms.output_head import output_head
from rlhf.algorithms.policy_losses import clipped_surrogate
from rlhf.algorithms.step_models import step_model
from rlhf.algorithms.top_k_support import row_gradient_sums, update_row_moments_
from tests.algorithms.test_curvature import ACTIONS, ADVANTAGES, F64, HIDDEN, STATE, WEIGHT, close, random_tokens, sgd

PLAIN = dict(bias_V=None, temperature=1.0, logit_softcap=None, logit_scale=1.0)


def dense_sgd_step(weights: torch.Tensor, lr: float, **settings) -> torch.Tensor:
    """lr * gradient of sum_i weights_i A_i log p(a_i) over the three tokens of test_curvature.py."""
    weight = WEIGHT.clone().requires_grad_()
    logp = (HIDDEN @ weight.t()).log_softmax(1).gather(1, ACTIONS[:, None])[:, 0]
    return lr * torch.autograd.grad((weights * ADVANTAGES * logp).sum(), weight)[0]


def test_the_mean_step_of_three_tokens_at_all_of_them():
    step = dense_sgd_step(torch.full((3,), 1 / 3, dtype=F64), 0.1)
    close(step[0], [-0.001867176965657, 0.028371462749369])
    close(step[1], [0.006161141387308, -0.001988301310518])
    close(step[2], [-0.004293964421651, -0.026383161438851])
    for vocab_chunk in (1, 2, None):
        shifts = step_shifts(HIDDEN, WEIGHT, ACTIONS, ADVANTAGES, step, vocab_chunk=vocab_chunk)
        close(shifts.delta_N, [0.00967902055755026, -0.0297938783015586, 0.0268626690995233])
        close(shifts.variance_N, [1.32639068952213e-4, 8.75984827552785e-4, 5.50549639967543e-4])
        means = [float(shifts[i].mean()) for i in range(5)]
        expected = [0.0156546890428923, 2.83826935725341e-4, 2.59862256078757e-4]
        assert means == pytest.approx([*expected, 2.61007836761626e-4, 0.0156522474277187], rel=1e-10)


def test_the_sampled_shift_averaged_over_actions_is_the_exact_one():
    step = dense_sgd_step(torch.full((3,), 1 / 3, dtype=F64), 0.1)
    repeated = HIDDEN[:1].expand(3, 2)
    shifts = step_shifts(repeated, WEIGHT, torch.arange(3), torch.ones(3, dtype=F64), step)
    close(shifts.sampled_policy_N, [4.68417194767402e-5, 3.1940191415764e-6, 2.0250940222827e-4])
    average = (shifts.logp_N.exp() * shifts.sampled_policy_N).sum()
    assert float(average) == pytest.approx(6.63195344761064e-5, rel=1e-10)
    close(shifts.exact_policy_N, [6.63195344761064e-5] * 3)


def test_exact_kl_and_change_of_each_tokens_own_step():
    kl, change = [], []
    for token in range(3):
        step = dense_sgd_step(torch.eye(3, dtype=F64)[token], 0.1)
        shifts = step_shifts(HIDDEN, WEIGHT, ACTIONS, ADVANTAGES, step)
        kl.append(float(shifts.kl_N[token]))
        change.append(float(shifts.objective_change_N[token]))
    assert kl == pytest.approx([0.00168164693910943, 0.00447309496607808, 0.0104166726814856], rel=1e-10)
    assert change == pytest.approx([0.0735501384144512, 0.0942735461853593, 0.121089057353963], rel=1e-10)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.3, 10.0])
def test_the_exact_kl_keeps_its_digits_in_float32(scale):
    hidden, weight, actions, advantages, state = random_tokens(0, dtype=torch.float32)
    # a part that all logits share: no KL at all, but large numbers to cancel
    step = state["exp_avg_VD"] * scale + torch.randn(5)
    shifts = step_shifts(hidden, weight, actions, advantages, step, vocab_chunk=6)
    z, u = hidden.double() @ weight.double().t(), hidden.double() @ step.double().t()
    p, deviation = z.softmax(1), u - (z.softmax(1) * u).sum(1, keepdim=True)
    # log E exp(t) with E t = 0, from the series' own remainder so that float64 is enough
    excess = torch.special.expm1(deviation) - deviation
    small = deviation.abs() < 1e-2
    excess[small] = (deviation**2 / 2 * (1 + deviation / 3 * (1 + deviation / 4 * (1 + deviation / 5))))[small]
    expected = torch.log1p((p * excess).sum(1))
    # the common part is rounded in the step itself and in the product: about 1e-7 of it in every u
    rounding = 4e-7 * u.abs().amax(1) * deviation.abs().amax(1)
    assert bool(((shifts.kl_N.double() - expected).abs() <= 1e-5 * expected + rounding).all())


def test_objectives_other_than_the_surrogate():
    step = torch.tensor([[0.03, -0.02], [0.01, 0.05], [-0.04, 0.0]], dtype=F64)
    hidden, action, advantage = HIDDEN[:1], torch.tensor([0]), torch.ones(1, dtype=F64)
    logp = (hidden @ WEIGHT.t()).log_softmax(1)[:, 0]
    ratio = ratio_surrogate(torch.tensor([0.2], dtype=F64), advantage)
    penalty = k3_penalty(logp, logp + 0.3, 0.05)
    both = tuple(a + b for a, b in zip(ratio, penalty, strict=True))
    for derivatives, expected in (
        (ratio, 0.00954203416545052),
        (log_prob_surrogate(advantage), 0.00777867925998892),
        (penalty, 1.33798975094029e-4),
        (both, 0.00967583314054455),
    ):
        shifts = step_shifts(
            hidden,
            WEIGHT,
            action,
            advantage,
            step,
            objective_slope_N=derivatives[0],
            objective_curvature_N=derivatives[1],
        )
        close(shifts.delta_N, [0.00820701628927565])
        close(shifts.variance_N, [8.56674058573473e-4])
        close(shifts.objective_N, [expected])


def test_a_tokens_own_step_follows_the_objective_given():
    slope, curvature = torch.tensor([0.4, -1.0, 0.0], dtype=F64), torch.tensor([0.1, 0.3, 0.0], dtype=F64)
    shifts = sgd(objective_slope_N=slope, objective_curvature_N=curvature)
    plain = token_shifts(HIDDEN, WEIGHT, ACTIONS, slope, lr=0.1, step_model="sgd")
    close(shifts.policy_N, plain.policy_N.tolist())
    torch.testing.assert_close(shifts.kappa_first_N, plain.kappa_first_N)
    expected = slope * shifts.delta_N + (curvature * shifts.delta_N**2 - slope * shifts.variance_N) / 2
    close(shifts.objective_N, expected.tolist())
    assert float(shifts.objective_N[2]) == 0


@pytest.mark.parametrize("log_ratio", [-0.7, -0.1, 0.0, 0.1, 0.7])
@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_derivatives_of_objectives_are_those_of_minus_the_losses(log_ratio, advantage):
    logp = torch.tensor([log_ratio - 1.0], dtype=F64, requires_grad=True)
    advantages = torch.tensor([advantage], dtype=F64)
    reference = torch.tensor([-1.3], dtype=F64)
    surrogate = ratio_surrogate(logp.detach() + 1.0, advantages, clip_low=0.2, clip_high=0.2)
    penalty = k3_penalty(logp.detach(), reference, 0.05)
    for objective, (slope, curvature) in (
        (-clipped_surrogate(logp + 1.0, advantages, clip_low=0.2, clip_high=0.2), surrogate),
        (-0.05 * kl_estimate(logp, reference, "k3"), penalty),
    ):
        first = torch.autograd.grad(objective.sum(), logp, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), logp)[0] if first.requires_grad else torch.zeros(1, dtype=F64)
        close(slope, first.tolist())
        close(curvature, second.tolist())


def test_temperature_and_softcap_of_a_given_step():
    step = dense_sgd_step(torch.tensor([1.0, 0, 0], dtype=F64), 0.1)
    arguments = (HIDDEN[:1], WEIGHT, ACTIONS[:1], torch.ones(1, dtype=F64), step)
    warm = step_shifts(*arguments, temperature=2.0)
    close(warm.delta_N, [0.0373640665928052])
    close(warm.variance_N, [7.9886453621311e-4])
    close(warm.objective_N, [0.0376626710608744])
    close(warm.sampled_policy_N, [6.9803673617579e-4])
    capped = step_shifts(*arguments, logit_softcap=1.5)
    close(capped.delta_N, [0.0716930767342354])
    close(capped.variance_N, [0.00324889022296414])


# inner products of gradients


def test_the_gram_matrix_of_three_tokens():
    head = output_head(HIDDEN, WEIGHT, ACTIONS, **PLAIN)
    scores = score_gram(head, HIDDEN, ACTIONS, sgd().log_normalizer_N, vocab_chunk=2)
    inner = scores / (HIDDEN @ HIDDEN.t())
    close(inner[0, 1:], [-0.112711509348559, -0.611598110073831])
    close(inner[1, 2:], [-0.274776658443294])
    gram = scores * ADVANTAGES[:, None] * ADVANTAGES
    close(gram.diagonal(), [0.726526897412169, 0.967287435810988, 1.136415277491516])
    close(gram[0, 1:], [0.022542301869712, -0.458698582555373])
    close(gram[1, 2:], [-0.274776658443294])
    # the step of all three, from the matrix alone
    delta = 0.1 / 3 * gram.sum(0) / ADVANTAGES
    close(delta, [0.00967902055755026, -0.0297938783015586, 0.0268626690995233])


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_the_gram_matrix_is_that_of_autograd_gradients(softcap):
    hidden, weight, actions, advantages, _ = random_tokens(1)
    bias = torch.randn(23, dtype=F64)
    settings = dict(bias_V=bias, temperature=0.7, logit_softcap=softcap, logit_scale=1.3)
    head = output_head(hidden, weight, actions, **settings)
    shifts = token_shifts(hidden, weight, actions, advantages, lr=1.0, step_model="sgd", **settings)
    found = score_gram(head, hidden, actions, shifts.log_normalizer_N, token_chunk=4, vocab_chunk=3)
    gradients = []
    for token in range(9):
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        z = 1.3 * (w @ hidden[token] + b)
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        logp = (z / 0.7).log_softmax(0)[actions[token]]
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(logp, (w, b))]))
    stacked = torch.stack(gradients)
    torch.testing.assert_close(found, stacked @ stacked.t(), rtol=1e-10, atol=1e-12)


# mean steps of groups


def evaluator(tokens, state, name: str, *, lr: float, fisher: str = "sampled", **changes):
    hidden, weight, actions, advantages = tokens
    head = output_head(hidden, weight, actions, **PLAIN)
    shifts = token_shifts(*tokens, lr=lr, step_model=name, **state)
    return partial(
        mean_step_shifts,
        head=head,
        model=step_model(name, head, **state),
        hidden_ND=hidden,
        actions_N=actions,
        slope_N=advantages,
        curvature_N=advantages,
        log_normalizer_N=shifts.log_normalizer_N,
        lr=lr,
        fisher=fisher,
        **changes,
    )


def test_mean_steps_of_two_sequences():
    tokens = (HIDDEN, WEIGHT, ACTIONS, ADVANTAGES)
    accepted, sequences = torch.ones(3, dtype=torch.bool), torch.tensor([0, 0, 1])
    found = {f: evaluator(tokens, {}, "sgd", lr=0.1, fisher=f)(accepted, sequences, 2) for f in ("sampled", "exact")}
    close(found["sampled"].objective_S, [0.0433041652889595, 0.121541322265874])
    close(found["sampled"].policy_S, [0.00130749013222386, 0.0258287936583224])
    close(found["exact"].policy_S, [7.99280535525153e-4, 0.0100292046248769])


@pytest.mark.parametrize("name", ["sgd", "adam_frozen", "adam_row"])
@pytest.mark.parametrize("fisher", ["sampled", "exact", "max"])
def test_mean_steps_equal_dense_steps_at_the_groups_own_tokens(name, fisher):
    *tokens, state = random_tokens(2)
    hidden, weight, actions, advantages = tokens
    accepted = torch.tensor([1, 1, 0, 1, 1, 1, 1, 0, 1], dtype=torch.bool)
    groups = torch.tensor([0, 2, 2, 1, 0, 2, 0, 3, 2])  # not sorted; group 3 has lost its only token
    evaluate = evaluator(tokens, state, name, lr=0.1, fisher=fisher, token_chunk=2, vocab_chunk=5)
    found = evaluate(accepted, groups, 5)
    head = output_head(hidden, weight, actions, **PLAIN)
    shifts = token_shifts(*tokens, lr=0.1, step_model=name, **state)
    for group in range(3):
        own = accepted & (groups == group)
        share = own.to(F64) / own.sum()
        step = proposed_step(
            head, step_model(name, head, **state), hidden, actions, advantages, share, shifts.log_normalizer_N, lr=0.1
        )
        expected = step_shifts(hidden[own], weight, actions[own], advantages[own], step)
        policy = {
            "sampled": expected.sampled_policy_N,
            "exact": expected.exact_policy_N,
            "max": torch.maximum(expected.sampled_policy_N, expected.exact_policy_N),
        }[fisher]
        assert float(found.objective_S[group]) == pytest.approx(float(expected.objective_N.mean()), rel=1e-10)
        assert float(found.policy_S[group]) == pytest.approx(float(policy.mean()), rel=1e-10)
    assert found.objective_S[3:].tolist() == found.policy_S[3:].tolist() == [0.0, 0.0]


def test_a_rejected_token_that_is_not_finite_does_not_reach_its_group():
    hidden, weight, actions, advantages, state = random_tokens(3)
    groups, accepted = torch.zeros(9, dtype=torch.long), torch.arange(9) != 4
    clean = evaluator((hidden, weight, actions, advantages), state, "adam_frozen", lr=0.1)(accepted, groups, 1)
    spoiled = hidden.clone()
    spoiled[4] = math.nan
    tokens = (spoiled, weight, actions, advantages)
    found = evaluator(tokens, state, "adam_frozen", lr=0.1)(accepted, groups, 1)
    assert torch.equal(found.objective_S, clean.objective_S) and torch.equal(found.policy_S, clean.policy_S)


def test_no_accepted_token_leaves_every_group_at_0():
    *tokens, state = random_tokens(4)
    nothing = torch.zeros(9, dtype=torch.bool)
    found = evaluator(tokens, state, "sgd", lr=0.1)(nothing, torch.zeros(9, dtype=torch.long), 2)
    assert found.objective_S.tolist() == found.policy_S.tolist() == [0.0, 0.0]


# supports of a few ids


def test_a_support_of_all_ids_is_the_whole_vocabulary():
    *tokens, state = random_tokens(5)
    for name in ("sgd", "adam_frozen", "adam_row"):
        whole = token_shifts(*tokens, lr=0.1, step_model=name, logit_softcap=2.0, **state)
        for top_k in (22, 23, 400):
            found = token_shifts(*tokens, lr=0.1, step_model=name, logit_softcap=2.0, top_k=top_k, **state)
            # 22 ids and the action are all ids unless the action is among the 22
            rows = torch.ones(9, dtype=torch.bool)
            if top_k == 22:
                rows = tokens[2] == (tokens[0] @ tokens[1].t()).argmin(1)
            for a, b in zip(whole, found, strict=True):
                torch.testing.assert_close(a[rows], b[rows], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["sgd", "adam_frozen", "adam_row"])
def test_a_top_k_support_renormalises_and_always_holds_the_action(name):
    hidden, weight, actions, advantages, state = random_tokens(6)
    actions[0] = int((hidden[0] @ weight.t()).argmin())  # certainly outside
    settings = dict(lr=0.1, step_model=name, fisher="exact", token_chunk=3, vocab_chunk=3)
    found = token_shifts(hidden, weight, actions, advantages, top_k=4, **settings, **state)
    for token in range(9):
        top = (weight @ hidden[token]).topk(4).indices
        ids = torch.unique(torch.cat([top, actions[token : token + 1]]))
        few = {n: v[ids] if isinstance(v, torch.Tensor) else v for n, v in state.items()}
        action = (ids == actions[token]).nonzero()[0]
        one = slice(token, token + 1)
        expected = token_shifts(hidden[one], weight[ids], action, advantages[one], **settings, **few)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a[one], b, rtol=1e-9, atol=1e-14)


def test_moments_of_rows_after_the_first_update():
    head = output_head(HIDDEN, WEIGHT, ACTIONS, **PLAIN)
    accepted = torch.tensor([True, True, False])
    total, count = row_gradient_sums(head, HIDDEN, ACTIONS, ADVANTAGES, accepted, 2, (2, 2))
    assert count.tolist() == [1, 2, 1]
    mean = total / count[:, None]
    close(mean[0], [0.5, 0.25])
    close(mean[1], [-0.354995837495788, 0.189987512487364])
    close(mean[2], [0.209991674991576, -0.629975024974728])
    exp_avg, exp_avg_sq = torch.zeros(3, 2, dtype=F64), torch.zeros(3, 2, dtype=F64)
    update_row_moments_(exp_avg, exp_avg_sq, total, count)
    torch.testing.assert_close(exp_avg, -0.1 * mean)
    torch.testing.assert_close(exp_avg_sq, 0.001 * mean**2)


def test_a_row_in_no_support_keeps_its_moments():
    head = output_head(HIDDEN, WEIGHT, ACTIONS, **PLAIN)
    accepted = torch.tensor([True, False, False])
    total, count = row_gradient_sums(head, HIDDEN, ACTIONS, ADVANTAGES, accepted, 1, (2, 2))
    assert count[2] == 0 and total[2].tolist() == [0, 0]
    exp_avg, exp_avg_sq = STATE["exp_avg_VD"].clone(), STATE["exp_avg_sq_VD"].clone()
    update_row_moments_(exp_avg, exp_avg_sq, total, count)
    assert torch.equal(exp_avg[2], STATE["exp_avg_VD"][2]) and torch.equal(exp_avg_sq[2], STATE["exp_avg_sq_VD"][2])
    assert not torch.equal(exp_avg[0], STATE["exp_avg_VD"][0])


def test_row_sums_over_the_whole_vocabulary_are_the_dense_gradient():
    head = output_head(HIDDEN, WEIGHT, ACTIONS, **PLAIN)
    total, count = row_gradient_sums(head, HIDDEN, ACTIONS, ADVANTAGES, torch.ones(3, dtype=torch.bool), None, (2, 2))
    torch.testing.assert_close(total, dense_sgd_step(torch.ones(3, dtype=F64), 1.0))
    assert count.tolist() == [3, 3, 3]


def test_steps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"step of shape \(2, 3\) for a weight of \(3, 2\)"):
        step_shifts(HIDDEN, WEIGHT, ACTIONS, ADVANTAGES, WEIGHT.t())
    with pytest.raises(ValueError, match="delta_bias_V is given, but the head has no bias"):
        step_shifts(HIDDEN, WEIGHT, ACTIONS, ADVANTAGES, WEIGHT, delta_bias_V=torch.zeros(3))

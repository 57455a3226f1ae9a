"""Acceptance, its stages and the greedy budget, calibration, and the denominators after rejection."""

import itertools
import math

import numpy as np
import pytest
import torch

from rlhf.algorithms.accepted_weights import accepted_token_weights
from rlhf.algorithms.aggregate_steps import GroupShifts
from rlhf.algorithms.aggregation import StepTotals
from rlhf.algorithms.curvature import token_shifts
from rlhf.algorithms.gradient_gram import score_gram
from rlhf.algorithms.output_head import output_head
from rlhf.algorithms.trust_region import TrustRegion, accept, calibrate, greedy, rejections, sgd_cross_shifts
from tests.algorithms.test_curvature import ACTIONS, ADVANTAGES, F64, HIDDEN, WEIGHT, random_tokens, sgd
from tests.algorithms.test_curvature_aggregate import PLAIN, evaluator


def band(delta_f: float, delta_h: float) -> TrustRegion:
    return TrustRegion(delta_f=delta_f, delta_h_low=-delta_h, delta_h_high=delta_h)


# the token rule


@pytest.mark.parametrize(
    ("delta_f", "delta_h", "mask"),
    [
        (0.01, 0.2, [1, 1, 0]),
        (0.005, 1, [1, 0, 0]),
        (1, 0.08, [1, 0, 0]),
        (1, 0.1, [1, 1, 0]),
        (0.02, 0.05, [0, 0, 0]),
        (1, 1, [1, 1, 1]),
    ],
)
def test_masks_of_three_tokens(delta_f, delta_h, mask):
    assert accept(sgd(), band(delta_f, delta_h)).tolist() == [bool(value) for value in mask]


def given(objective: list[float], policy: list[float]):
    """The shifts of test_curvature.py with other numbers in their place."""
    return sgd()._replace(objective_N=torch.tensor(objective), policy_N=torch.tensor(policy))


def test_bounds_are_strict():
    region = TrustRegion(delta_f=0.5, delta_h_low=-0.25, delta_h_high=0.25)
    shifts = given([-0.25, 0.25, 0.0, 0.0, 0.125], [0.0, 0.0, 0.5, 0.25, 0.25])
    assert accept(shifts, region).tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_rejected_even_without_bounds(bad):
    endless = TrustRegion(delta_f=math.inf, delta_h_low=-math.inf, delta_h_high=math.inf)
    shifts = given([bad, 0.0, 0.0], [0.0, bad, 0.0])
    assert accept(shifts, endless).tolist() == [False, False, True]
    reasons = rejections(shifts, endless)
    assert reasons.nonfinite_N.tolist() == [True, True, False]
    assert not bool((reasons.policy_N | reasons.objective_low_N | reasons.objective_high_N).any())


def test_reasons_of_a_rejection():
    region = TrustRegion(delta_f=1.0, delta_h_low=-0.1, delta_h_high=0.1)
    reasons = rejections(given([-0.2, 0.0, 0.2, 0.0, 0.2], [0.0, 2.0, 0.0, 0.5, 3.0]), region)
    assert reasons.objective_low_N.tolist() == [True, False, False, False, False]
    assert reasons.objective_high_N.tolist() == [False, False, True, False, True]
    assert reasons.policy_N.tolist() == [False, True, False, False, True]


def test_a_token_without_a_step_is_accepted_unless_the_lower_bound_is_above_0():
    still = given([0.0], [0.0])
    for low, expected in ((-0.01, True), (0.0, True), (0.001, False)):
        region = TrustRegion(delta_f=1e-4, delta_h_low=low, delta_h_high=0.01)
        assert accept(still, region).tolist() == [expected]
    assert accept(sgd(lr=0.0), TrustRegion(1e-9, 0.0, 1e-9)).all()


def test_the_one_sided_band_rejects_a_falling_objective():
    region = TrustRegion(delta_f=1.0, delta_h_low=0.0, delta_h_high=0.01)
    assert accept(given([-1e-9, 0.005, 0.01], [0.0, 0.0, 0.0]), region).tolist() == [False, True, False]


def test_a_larger_delta_f_never_shrinks_the_accepted_set():
    *tokens, _ = random_tokens(0, count=200)
    shifts = token_shifts(*tokens, lr=0.05, step_model="sgd")
    before = torch.zeros(200, dtype=torch.bool)
    counts = []
    for delta_f in torch.logspace(-6, 1, 30).tolist():
        now = accept(shifts, band(delta_f, 10.0))
        assert bool((now | ~before).all())
        before = now
        counts.append(int(now.sum()))
    assert counts[0] < counts[-1]


def test_micro_batches_get_the_masks_of_the_whole_batch():
    *tokens, state = random_tokens(1, count=30)
    settings = dict(lr=0.01, step_model="adam_frozen", **state)
    region = band(2e-3, 0.05)
    whole = accept(token_shifts(*tokens, **settings), region)
    assert 0 < int(whole.sum()) < 30
    hidden, weight, actions, advantages = tokens
    parts = [
        accept(token_shifts(hidden[rows], weight, actions[rows], advantages[rows], **settings), region)
        for rows in (slice(0, 7), slice(7, 8), slice(8, 30))
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (dict(delta_f=0.0), "delta_f must be above 0, got 0.0"),
        (dict(delta_f=-1e-4), "delta_f must be above 0, got -0.0001"),
        (dict(delta_f=math.nan), "delta_f must be above 0, got nan"),
        (dict(delta_h_low=0.01), "delta_h_low must be below delta_h_high, got 0.01 and 0.01"),
        (dict(delta_h_high=-0.02), "delta_h_low must be below delta_h_high, got -0.01 and -0.02"),
        (dict(delta_h_low=math.nan), "delta_h_low must be below delta_h_high, got nan and 0.01"),
    ],
)
def test_regions_that_accept_nothing_are_refused(bounds, message):
    with pytest.raises(ValueError, match=message):
        TrustRegion(**bounds)


# groups and their order

SEQUENCES = torch.tensor([0, 0, 1])


def test_whole_sequences_are_accepted_or_rejected():
    evaluate = evaluator((HIDDEN, WEIGHT, ACTIONS, ADVANTAGES), {}, "sgd", lr=0.1)
    groups = dict(sequence_N=SEQUENCES, sequences=2, evaluate=evaluate)
    # m_H 0.0433 and 0.1215, m_F 0.0013 and 0.0258
    assert accept(sgd(), band(0.01, 0.2), "sequence", **groups).tolist() == [True, True, False]
    assert accept(sgd(), band(0.001, 0.2), "sequence", **groups).tolist() == [False, False, False]
    assert accept(sgd(), band(1.0, 0.04), "sequence", **groups).tolist() == [False, False, False]


def test_the_batch_is_accepted_or_the_step_is_skipped():
    evaluate = evaluator((HIDDEN, WEIGHT, ACTIONS, ADVANTAGES), {}, "sgd", lr=0.1)
    # m_H 0.0157, m_F 2.84e-4 of the mean step
    assert accept(sgd(), band(3e-4, 0.02), "global", evaluate=evaluate).all()
    assert not accept(sgd(), band(2e-4, 0.02), "global", evaluate=evaluate).any()
    assert not accept(sgd(), band(3e-4, 0.015), "global", evaluate=evaluate).any()


def test_stages_see_what_the_stages_before_left():
    """Token, then sequence, then global, whatever their order in the argument; each step of a group is of the tokens
    still accepted."""
    *tokens, state = random_tokens(2, count=12)
    sequences = torch.arange(12) // 3
    evaluate = evaluator(tokens, state, "adam_frozen", lr=0.01)
    calls = []

    def recorded(accepted, group, groups):
        calls.append((accepted.clone(), groups))
        return evaluate(accepted, group, groups)

    shifts = token_shifts(*tokens, lr=0.01, step_model="adam_frozen", **state)
    policy = evaluate(torch.ones(12, dtype=torch.bool), sequences, 4).policy_S
    region = band(float(policy.sort().values[2]), 1.0)
    found = accept(
        shifts, region, ["global", "sequence", "token"], sequence_N=sequences, sequences=4, evaluate=recorded
    )
    by_token = accept(shifts, region, "token")
    assert 0 < int(by_token.sum()) < 12
    assert torch.equal(calls[0][0], by_token) and calls[0][1] == 4
    groups = evaluate(by_token, sequences, 4)
    by_sequence = by_token & region.accepts(groups.objective_S, groups.policy_S)[sequences]
    assert torch.equal(calls[1][0], by_sequence) and calls[1][1] == 1
    batch = evaluate(by_sequence, torch.zeros(12, dtype=torch.long), 1)
    assert bool(region.accepts(batch.objective_S, batch.policy_S)) == bool(found.any())
    assert torch.equal(found, by_sequence if bool(found.any()) else torch.zeros(12, dtype=torch.bool))


def test_a_group_whose_shift_is_not_finite_is_rejected():
    def broken(accepted, group, groups):
        return GroupShifts(torch.tensor([math.nan, 0.0]), torch.zeros(2))

    found = accept(sgd(), band(1, 1), "sequence", sequence_N=SEQUENCES, sequences=2, evaluate=broken)
    assert found.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("batch", "unknown acceptance rules \\['batch'\\]"),
        ([], "unknown acceptance rules \\[\\]"),
        ("global", "need evaluate, the shifts of groups"),
        ("greedy", "the greedy rule needs cross_shift_NN"),
    ],
)
def test_rules_without_what_they_need_are_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        accept(sgd(), band(1, 1), rule)


def test_the_sequence_rule_needs_the_sequences():
    evaluate = evaluator((HIDDEN, WEIGHT, ACTIONS, ADVANTAGES), {}, "sgd", lr=0.1)
    with pytest.raises(ValueError, match="the sequence rule needs sequence_N"):
        accept(sgd(), band(1, 1), "sequence", evaluate=evaluate)


# the greedy budget


def cross_shifts() -> torch.Tensor:
    head = output_head(HIDDEN, WEIGHT, ACTIONS, **PLAIN)
    return sgd_cross_shifts(score_gram(head, HIDDEN, ACTIONS, sgd().log_normalizer_N), ADVANTAGES, 0.1)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([0], 2.53750534071817e-4),
        ([1], 3.26752275955313e-4),
        ([2], 1.01743246807264e-3),
        ([0, 1], 7.85912579294516e-4),
        ([0, 2], 3.71915059673814e-4),
        ([1, 2], 7.23934574856782e-4),
        ([0, 1, 2], 2.83826935725341e-4),
    ],
)
def test_the_shift_of_every_subset(kept, expected):
    delta = cross_shifts()[kept].sum(0)
    assert float((delta**2 / 2).mean()) == pytest.approx(expected, rel=1e-10)


def test_greedy_removal_is_not_monotone():
    everything = torch.ones(3, dtype=torch.bool)
    # all -> {0, 2}, which is worse than all -> {0}
    assert greedy(cross_shifts(), everything, 2.6e-4).tolist() == [True, False, False]
    assert greedy(cross_shifts(), everything, 3e-4).tolist() == [True, True, True]
    assert greedy(cross_shifts(), everything, 1e-9).tolist() == [False, False, False]
    found = accept(sgd(), band(2.6e-4, 1.0), "greedy", cross_shift_NN=cross_shifts())
    assert found.tolist() == [True, False, False]


def test_greedy_equals_a_search_that_recomputes_every_shift():
    g = torch.Generator().manual_seed(0)
    cross = torch.randn(12, 12, generator=g, dtype=F64)
    cross[5] = math.nan
    cross[:, 5] = math.nan
    states = torch.arange(12) != 5
    accepted = torch.arange(12) != 8

    def shift(kept) -> float:
        return float((cross[sorted(kept)][:, states].sum(0) ** 2 / 2).mean())

    for budget in (4.0, 1.0, 0.3, 0.05):
        kept = set(range(12)) - {5, 8}
        while kept and not shift(kept) < budget:
            kept.remove(min(sorted(kept), key=lambda token: shift(kept - {token}) if len(kept) > 1 else 0.0))
        assert greedy(cross, accepted, budget).nonzero()[:, 0].tolist() == sorted(kept)


def test_greedy_of_nothing_is_nothing():
    assert greedy(cross_shifts(), torch.zeros(3, dtype=torch.bool), 1.0).tolist() == [False] * 3


# calibration


def test_calibration_takes_quantiles_of_tokens_that_propose_a_step():
    *tokens, state = random_tokens(3, count=300)
    tokens[3][::5] = 0  # no gradient: 0 everywhere
    tokens[3][1] = math.nan
    shifts = token_shifts(*tokens, lr=1.0, step_model="adam_frozen", **state)
    kappas = (shifts.kappa_policy_N, shifts.kappa_first_N, shifts.kappa_second_N)
    region = calibrate(*kappas, lr=1e-3, quantile=0.95)
    measured = (tokens[3] != 0) & tokens[3].isfinite()
    at_lr = token_shifts(*tokens, lr=1e-3, step_model="adam_frozen", **state)
    policy, size = at_lr.policy_N[measured].numpy(), at_lr.objective_N[measured].abs().numpy()
    assert region.delta_f == pytest.approx(np.quantile(policy, 0.95, method="inverted_cdf"), rel=1e-12)
    assert region.delta_h_high == pytest.approx(np.quantile(size, 0.95, method="inverted_cdf"), rel=1e-12)
    assert region.delta_h_low == -region.delta_h_high
    rejected = measured & ~accept(at_lr, region)
    assert 0.05 <= float(rejected.sum() / measured.sum()) <= 0.10 + 2 / int(measured.sum())


@pytest.mark.parametrize(
    ("lr", "quantile", "message"),
    [
        (0.0, 0.95, "calibration needs a finite learning rate above 0, got 0.0"),
        (math.inf, 0.95, "calibration needs a finite learning rate above 0, got inf"),
        (1e-3, 0.0, "quantile must be in \\(0, 1\\], got 0.0"),
        (1e-3, 1.5, "quantile must be in \\(0, 1\\], got 1.5"),
    ],
)
def test_calibration_refuses_settings_without_a_meaning(lr, quantile, message):
    with pytest.raises(ValueError, match=message):
        calibrate(torch.ones(3), torch.ones(3), torch.ones(3), lr, quantile)


def test_calibration_without_a_step_is_refused():
    with pytest.raises(ValueError, match="none of 4 tokens proposes a finite step"):
        calibrate(torch.zeros(4), torch.zeros(4), torch.zeros(4), 1e-3, 0.95)


# denominators

LOSS = torch.tensor([0.5, -0.2, 0.1, 0.3, 0.4, -0.6, 0.2], dtype=F64)
ACCEPTED = torch.tensor([1, 0, 1, 0, 0, 0, 0], dtype=torch.bool)
SEQUENCE = torch.tensor([0, 0, 0, 1, 1, 1, 1])
LENGTHS = torch.tensor([3, 4])


@pytest.mark.parametrize(
    ("denominator", "counted", "tokens", "expected"),
    [
        ("sequence", "accepted", 2, 0.15),
        ("sequence", "original", 7, 0.1),
        ("constant", "accepted", 2, 0.075),
        ("constant", "original", 7, 0.075),
        ("token", "accepted", 2, 0.3),
        ("token", "original", 7, 0.0857142857142857),
    ],
)
def test_denominators_after_rejection(denominator, counted, tokens, expected):
    weights = accepted_token_weights(
        ACCEPTED,
        SEQUENCE,
        LENGTHS,
        StepTotals(sequences=2, tokens=tokens),
        denominator=denominator,
        counted=counted,
        max_tokens=4,
        dtype=F64,
    )
    assert float((weights * LOSS).sum()) == pytest.approx(expected, rel=1e-12)
    assert weights[~ACCEPTED].tolist() == [0.0] * 5
    assert float(1 - ACCEPTED.double().mean()) == pytest.approx(5 / 7)


def test_an_unknown_count_is_refused():
    with pytest.raises(ValueError, match="unknown counted 'all': choose accepted or original"):
        accepted_token_weights(
            ACCEPTED, SEQUENCE, LENGTHS, StepTotals(2, 7), denominator="token", counted="all", max_tokens=4
        )


def masked_gradient(rows: slice, accepted: torch.Tensor, sequence: torch.Tensor, lengths, totals, counted, losses_off):
    """Gradient of the masked REINFORCE loss of some tokens, or with rejected losses themselves set to 0."""
    *tokens, _ = random_tokens(4, count=len(accepted))
    hidden, weight, actions, advantages = tokens
    weights = accepted_token_weights(
        torch.ones_like(accepted) if losses_off else accepted,
        sequence,
        lengths,
        totals,
        denominator="sequence",
        counted=counted,
        max_tokens=8,
        dtype=F64,
    )
    weight = weight.clone().requires_grad_()
    logp = (hidden[rows] @ weight.t()).log_softmax(1).gather(1, actions[rows, None])[:, 0]
    loss = -advantages[rows] * logp
    if losses_off:
        loss = loss * accepted[rows]
    return torch.autograd.grad((weights[rows] * loss).sum(), weight)[0]


def test_a_mask_is_a_loss_of_0_bit_for_bit_at_fixed_denominators():
    accepted = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 1, 1], dtype=torch.bool)
    sequence, lengths = torch.arange(10) // 5, torch.tensor([5, 5])
    arguments = (slice(0, 10), accepted, sequence, lengths, StepTotals(2, 10), "original")
    assert torch.equal(masked_gradient(*arguments, losses_off=False), masked_gradient(*arguments, losses_off=True))


@pytest.mark.parametrize("counted", ["accepted", "original"])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(counted):
    accepted = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1, 1], dtype=torch.bool)
    sequence, lengths = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3, 3]), torch.tensor([3, 2, 3, 2])
    totals = StepTotals(4, int(accepted.sum()) if counted == "accepted" else 10)
    whole = masked_gradient(slice(0, 10), accepted, sequence, lengths, totals, counted, False)
    parts = [
        masked_gradient(rows, accepted, sequence, lengths, totals, counted, False)
        for rows in (slice(0, 3), slice(3, 8), slice(8, 10))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-15)
    # a micro-batch alone knows its own sequences only
    own = accepted_token_weights(
        accepted[3:8], sequence[3:8] - 1, lengths[1:3], totals, denominator="sequence", counted=counted, max_tokens=8
    )
    everything = accepted_token_weights(
        accepted, sequence, lengths, totals, denominator="sequence", counted=counted, max_tokens=8
    )
    assert torch.equal(own, everything[3:8])


def test_an_empty_completion_enters_no_count_but_that_of_sequences():
    settings = dict(denominator="sequence", counted="accepted", max_tokens=4)
    with_empty = accepted_token_weights(
        ACCEPTED, SEQUENCE, torch.tensor([3, 4, 0]), StepTotals(3, 2), **settings
    )
    without = accepted_token_weights(ACCEPTED, SEQUENCE, LENGTHS, StepTotals(2, 2), **settings)
    torch.testing.assert_close(with_empty * 3, without * 2)


def test_every_subset_of_rejections_keeps_the_mean_over_sequences():
    """With accepted denominators each sequence that has a token left weighs 1 / sequences."""
    for bits in itertools.product([False, True], repeat=4):
        accepted = torch.tensor(bits)
        weights = accepted_token_weights(
            accepted,
            torch.tensor([0, 0, 1, 1]),
            torch.tensor([2, 2]),
            StepTotals(2, int(accepted.sum())),
            denominator="sequence",
            counted="accepted",
            max_tokens=4,
        )
        for start in (0, 2):
            expected = 0.5 if any(bits[start : start + 2]) else 0.0
            assert float(weights[start : start + 2].sum()) == expected

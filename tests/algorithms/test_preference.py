"""VPO, DPO and IPO against closed forms; oracle names are those of the derivations they were computed from."""

import math

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.preference import calibration_weights, pair_losses, value_terms, vpo_loss, xpo_alpha

NONE = torch.empty(0, dtype=torch.float64)


def d(*values: float, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def v1(sign, alpha=0.01, **settings):
    chosen, rejected, cal = d(-12, grad=True), d(-11, grad=True), d(-20, grad=True)
    loss, metrics = vpo_loss(
        chosen, rejected, d(-12.5), d(-10.5), cal, d(-21), beta=0.1, alpha=alpha, sign=sign, **settings
    )
    loss.backward()
    return loss.item(), [float(each.grad) for each in (chosen, rejected, cal)], metrics


@pytest.mark.parametrize(("sign", "expected"), [(1, 0.645396660073571), (-1, 0.643396660073571)])
def test_v1_one_pair(sign, expected):
    loss, gradients, metrics = v1(sign)
    assert loss == pytest.approx(expected, abs=1e-14)
    assert gradients == pytest.approx([-0.047502081252106, 0.047502081252106, sign * 0.001], abs=1e-14)
    assert float(metrics["loss/value"]) == pytest.approx(sign * 0.001, abs=1e-15)
    assert float(metrics["rewards/margins"]) == pytest.approx(0.1) and float(metrics["rewards/accuracies"]) == 1
    assert float(metrics["value/jstar_hat"]) == pytest.approx(-0.1)


@pytest.mark.parametrize(("sign", "expected"), [(1, 0.624396660073571), (-1, 0.664396660073571)])
def test_v1_without_the_constant_of_the_reference(sign, expected):
    loss, gradients, _ = v1(sign, value_center=False)
    assert loss == pytest.approx(expected, abs=1e-14)
    assert gradients == v1(sign)[1]


@pytest.mark.parametrize(
    ("sign", "is_chosen", "expected"), [(-1, True, -0.048502081252106), (1, False, 0.048502081252106)]
)
def test_v2_a_side_of_the_pair_calibrates(sign, is_chosen, expected):
    chosen, rejected = d(-12, grad=True), d(-11, grad=True)
    side, reference = (chosen, d(-12.5)) if is_chosen else (rejected, d(-10.5))
    loss, _ = vpo_loss(chosen, rejected, d(-12.5), d(-10.5), side, reference, beta=0.1, alpha=0.01, sign=sign)
    loss.backward()
    assert loss.item() == pytest.approx(0.643896660073571, abs=1e-14)
    assert float(side.grad) == pytest.approx(expected, abs=1e-14)


def test_v3_labels():
    gap = d(1)
    assert float(pair_losses(gap, beta=0.1, labels="soft_bt", reward_gap_P=d(1))) == pytest.approx(0.67129080221057)
    assert float(pair_losses(gap, beta=0.1, label_smoothing=0.1)) == pytest.approx(0.654396660073571)
    assert float(pair_losses(gap, beta=0.1, loss_type="ipo")) == pytest.approx(16)
    for uniform, margin in ((0.73, 0.1), (0.74, -0.1)):
        drawn = pair_losses(gap, beta=0.1, labels="sampled_bt", reward_gap_P=d(1), uniform_P=d(uniform))
        assert float(drawn) == pytest.approx(math.log1p(math.exp(-margin)))


def test_v3_soft_labels_have_their_optimum_where_the_margin_is_the_reward_gap():
    gap = d(10, grad=True)
    pair_losses(gap, beta=0.1, labels="soft_bt", reward_gap_P=d(1)).sum().backward()
    assert float(gap.grad) == pytest.approx(0, abs=1e-15)


def test_v4_the_value_is_minus_beta_times_the_mean_log_ratio_on_the_calibration_distribution():
    reference, reward, cal, beta = d(0.5, 0.3, 0.2), d(1, -0.5, 2), d(0.2, 0.5, 0.3), 0.5
    calibrated = reward - (cal * reward).sum()
    weight = reference * (calibrated / beta).exp()
    policy = weight / weight.sum()
    ratio = (policy / reference).log()
    value = value_terms(ratio, sign=1)
    assert -beta * float((cal * value).sum()) == pytest.approx(0.794757129817499)
    direct = (policy * calibrated).sum() - beta * (policy * ratio).sum()
    assert float(direct) == pytest.approx(0.794757129817499)


# data: response 1 preferred to 2 eight times, 2 to 1 twice; three responses, softmax, reference uniform, beta 1
FIRST, SECOND = [0] * 8 + [1] * 2, [1] * 8 + [0] * 2
REFERENCE = -math.log(3)


def tabular(theta: Tensor, cal: list[float], sign: int, alpha: float) -> Tensor:
    """The loss with an exact expectation over the calibration distribution `cal`, by weights."""
    logp = theta.log_softmax(0)
    pairs = pair_losses(logp[FIRST] - logp[SECOND], beta=1.0).mean()
    return pairs + sign * alpha * (d(*cal) * value_terms(logp - REFERENCE, sign=sign)).sum()


@pytest.mark.parametrize(
    ("cal", "online", "offline"),
    [
        ((1, 0, 0), (0.372628471150606, 0.290203345126792, 0.337168183722601),
         (0.39628775970132, 0.279259264362832, 0.324452975935848)),
        ((0, 1, 0), (0.389803357538928, 0.274689783390048, 0.335506859071024),
         (0.378858375219323, 0.295055199293969, 0.326086425486709)),
        ((0.8, 0.2, 0), (0.376051020819214, 0.287069638117829, 0.336879341062957),
         (0.392791048172206, 0.282386806810602, 0.324822145017193)),
        ((1 / 3, 1 / 3, 1 / 3), (0.384389748260896, 0.284762929354931, 0.330847322384173),
         (0.384389748260896, 0.284762929354931, 0.330847322384173)),
    ],
)  # fmt: skip
def test_v5_one_step_of_optimism_and_of_pessimism(cal, online, offline):
    for sign, expected in ((1, online), (-1, offline)):
        theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        tabular(theta, cal, sign, 0.1).backward()
        after = (-0.5 * theta.grad).softmax(0)
        assert after.tolist() == pytest.approx(expected, abs=1e-14)


def test_v6_the_offline_optimum():
    for cal, policy, loss in (
        ((1 / 3, 1 / 3, 1 / 3), (25 / 48, 7 / 48, 1 / 3), 0.514132928779305),
        ((0.8, 0.2, 0), (0.8, 0.2, 1e-12), 0.440581437025383),
    ):
        theta = d(*policy).log().requires_grad_()
        found = tabular(theta, cal, -1, 0.1)
        found.backward()
        assert found.item() == pytest.approx(loss, abs=1e-11)
        assert theta.grad.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("k", "expected"),
    [(0, 0.484987355555462), (5, 0.351698757219116), (20, -0.148032087531529), (100, -2.81469875411575)],
)
def test_v7_optimism_has_no_lower_bound(k, expected):
    half = math.log(4) / 2
    assert tabular(d(half, -half, -k), [1 / 3] * 3, 1, 0.1).item() == pytest.approx(expected, abs=1e-12)


def test_v8_a_sum_over_pairs_is_a_mean_with_alpha_over_their_number():
    theta = d(0.3, -0.2, 0.1)
    logp = theta.log_softmax(0)
    summed = pair_losses(logp[FIRST] - logp[SECOND], beta=1.0).sum() + (logp - REFERENCE).mean()
    assert float(summed) / 10 == pytest.approx(0.572010947946739)
    assert tabular(theta, [1 / 3] * 3, 1, 0.1).item() == pytest.approx(0.572010947946739)


def test_v9_a_verifiable_reward_calibrated_on_the_wrong_answers():
    reference, beta = d(0.25, 0.75), 0.5
    weight = reference * (d(1, 0) / beta).exp()
    policy = weight / weight.sum()
    assert policy.tolist() == pytest.approx([0.711234594227594, 0.288765405772406])
    wrong = value_terms((policy / reference).log()[1:], sign=1)
    assert -beta * float(wrong) == pytest.approx(0.47722929639662)


def test_v10_calibration_is_a_mean_over_prompts():
    def loss(prompts):
        return vpo_loss(
            d(1, -3), d(0, 0), d(0, 0), d(0, 0), d(1, -2, 0.5), d(0, 0, 0), beta=0.1, alpha=0.02, sign=1,
            cal_prompt_C=prompts,
        )  # fmt: skip

    total, metrics = loss(torch.tensor([7, 7, 3]))
    assert float(total) == pytest.approx(0.749375952271049)
    assert float(metrics["loss/value"]) == pytest.approx(0, abs=1e-16)
    assert float(loss(None)[1]["loss/value"]) == pytest.approx(-0.000333333333333)
    assert calibration_weights(torch.tensor([7, 7, 3]), 3).tolist() == [0.25, 0.25, 0.5]


def test_v13_the_floor_of_optimism():
    for ratio, sign, value, gradient in ((-12, 1, -0.001, 0.0), (-8, 1, -0.0008, 1e-4), (-12, -1, 0.0012, -1e-4)):
        cal = d(ratio, grad=True)
        loss, metrics = vpo_loss(
            NONE, NONE, NONE, NONE, cal, d(0), beta=0.1, alpha=1e-3, sign=sign, log_ratio_floor=-10.0
        )
        loss.backward()
        assert loss.item() == pytest.approx(value) and float(cal.grad) == pytest.approx(gradient)
        assert float(metrics["value/floor_share"]) == (ratio < -10)


def test_optimism_with_alpha_is_pessimism_with_its_opposite_in_the_value_term():
    online, offline = v1(1), v1(-1)
    plain = v1(1, alpha=0.0)[0]
    assert online[0] - plain == pytest.approx(plain - offline[0])


def test_a_constant_in_all_reference_log_probs_of_a_prompt_changes_no_gradient():
    def gradients(shift):
        chosen, rejected, cal = d(-12, grad=True), d(-11, grad=True), d(-20, grad=True)
        references = [d(value + shift) for value in (-12.5, -10.5, -21)]
        vpo_loss(chosen, rejected, *references[:2], cal, references[2], beta=0.1, alpha=0.01, sign=1)[0].backward()
        return [float(each.grad) for each in (chosen, rejected, cal)]

    assert gradients(0.0) == pytest.approx(gradients(3.0), abs=1e-15)


def test_an_empty_batch_is_zero_and_attached():
    cal = torch.empty(0, dtype=torch.float64, requires_grad=True)
    loss, metrics = vpo_loss(NONE, NONE, NONE, NONE, cal, NONE, beta=0.1, alpha=0.1, sign=1)
    loss.backward()
    assert loss.item() == 0 and len(cal.grad) == 0
    assert set(metrics) == {"loss/preference", "loss/value"}


def test_parts_weighted_by_the_whole_are_the_whole():
    torch.manual_seed(0)
    logp = torch.randn(4, 6, dtype=torch.float64)
    cal, prompts = torch.randn(5, dtype=torch.float64), torch.tensor([0, 0, 1, 2, 2])
    whole, _ = vpo_loss(*logp, cal, torch.zeros(5).double(), beta=0.3, alpha=0.2, sign=-1, cal_prompt_C=prompts)
    weights = calibration_weights(prompts, 5)
    total = 0.0
    for rows, cals in ((slice(0, 1), slice(0, 4)), (slice(1, 6), slice(4, 5))):
        chosen, rejected, ref_chosen, ref_rejected = logp[:, rows]
        total += pair_losses((chosen - ref_chosen) - (rejected - ref_rejected), beta=0.3).sum() / 6
        total += -0.2 * 0.3 * (weights[cals] * value_terms(cal[cals], sign=-1)).sum()
    assert float(total) == pytest.approx(float(whole), abs=1e-15)


def test_weighted_pairs_are_a_weighted_mean():
    logp = d(1, -3)
    loss, _ = vpo_loss(
        logp, d(0, 0), d(0, 0), d(0, 0), NONE, NONE, beta=0.1, alpha=0.0, sign=1, pair_weight_P=d(1, 3)
    )
    assert float(loss) == pytest.approx((math.log1p(math.exp(-0.1)) + 3 * math.log1p(math.exp(0.3))) / 4)


def test_gradients_equal_finite_differences():
    torch.manual_seed(1)
    inputs = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    gap, prompts = torch.randn(3, dtype=torch.float64), torch.tensor([0, 1, 1])

    def loss(chosen, rejected, cal):
        zeros = torch.zeros(3, dtype=torch.float64)
        return vpo_loss(
            chosen, rejected, zeros, zeros, cal, zeros, beta=0.5, alpha=0.3, sign=1, labels="soft_bt", reward_gap_P=gap,
            cal_prompt_C=prompts, value_reduction="token_mean", cal_tokens_C=torch.tensor([2, 5, 3]),
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(loss, inputs)


def test_alpha_of_xpo():
    assert xpo_alpha(1e-5, 0.1) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0: it must be above 0"),
        ({"alpha": -1.0}, "alpha is -1.0: it must be 0 or more; pessimism is sign -1"),
        ({"sign": 0}, r"sign is 0: it must be 1 \(optimism, online\)"),
        ({"loss_type": "hinge"}, "loss_type is 'hinge': choose sigmoid or ipo"),
        ({"loss_type": "ipo", "labels": "soft_bt"}, "loss_type ipo takes hard labels"),
        ({"labels": "soft_bt"}, "need reward_gap_P"),
        ({"labels": "sampled_bt", "reward_gap_P": d(1)}, "need uniform_P"),
        ({"label_smoothing": 0.5}, r"label_smoothing is 0.5: it must be in \[0, 0.5\)"),
        ({"value_reduction": "token_mean"}, "needs cal_tokens_C"),
        ({"value_reduction": "token_mean", "cal_tokens_C": torch.tensor([0])}, "above 0"),
        ({"cal_prompt_C": torch.tensor([0, 1])}, "for 1 calibration completions"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    given = {"beta": 0.1, "alpha": 0.01, "sign": 1} | settings
    with pytest.raises(ValueError, match=message):
        vpo_loss(d(-12), d(-11), d(-12.5), d(-10.5), d(-20), d(-21), **given)


def test_bad_reference_log_probs_are_named():
    with pytest.raises(ValueError, match="pairs: the reference's log-prob of number 1 is nan"):
        vpo_loss(d(1, 2), d(1, 2), d(1, math.nan), d(1, 2), NONE, NONE, beta=0.1, alpha=0.0, sign=1)
    with pytest.raises(ValueError, match=r"calibration completions: log-probs have shape \(2,\)"):
        vpo_loss(NONE, NONE, NONE, NONE, d(1, 2), d(1), beta=0.1, alpha=0.0, sign=1)

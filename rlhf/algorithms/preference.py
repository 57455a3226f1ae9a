"""Losses of preference learning on summed log-probs: DPO, IPO and VPO (arXiv 2405.19320), XPO as a setting of it.

With R(y) = log pi(y|x) - log pi_ref(y|x), summed over completion tokens, VPO's loss is

    mean over pairs of -log sigmoid(beta (R(y+) - R(y-)))  +  s alpha beta  mean over prompts of mean_cal R(y)

s = +1 is optimism (online: pushes probability away from the calibration completions), s = -1 pessimism (offline: pulls
towards them). The objective of the paper sums over pairs; with a mean, as here, alpha is its alpha over their number.
The paper's own alpha and beta were not found; XPO's coefficient is alpha beta (`xpo_alpha`).

Suffixes: P pairs, C calibration completions.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossType = Literal["sigmoid", "ipo"]
Labels = Literal["hard", "soft_bt", "sampled_bt"]
ValueReduction = Literal["sum", "token_mean"]


def vpo_loss(
    logp_chosen_P: Tensor,
    logp_rejected_P: Tensor,
    ref_chosen_P: Tensor,
    ref_rejected_P: Tensor,
    logp_cal_C: Tensor,
    ref_cal_C: Tensor,
    *,
    beta: float,
    alpha: float,
    sign: int,
    labels: Labels = "hard",
    loss_type: LossType = "sigmoid",
    label_smoothing: float = 0.0,
    reward_gap_P: Tensor | None = None,
    uniform_P: Tensor | None = None,
    pair_weight_P: Tensor | None = None,
    cal_prompt_C: Tensor | None = None,
    log_ratio_floor: float | None = None,
    value_reduction: ValueReduction = "sum",
    cal_tokens_C: Tensor | None = None,
    value_center: bool = True,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """(loss, metrics without gradient) of one batch. For a batch in parts, weigh `pair_losses` and `value_terms`.

    `pair_weight_P`: weights of the mean over pairs. `cal_prompt_C`: the prompt that each calibration completion is of,
    any integers; none given: each is a prompt of its own. `value_center` False leaves the reference out of the value
    term, a constant. Others: see `pair_losses` and `value_terms`. Without pairs, or without calibration completions,
    that part is 0 and stays attached to the graph.

    Raises ValueError as these do.
    """
    check_settings(beta=beta, alpha=alpha, sign=sign)
    margin_P = log_ratio("pairs", logp_chosen_P, ref_chosen_P) - log_ratio("pairs", logp_rejected_P, ref_rejected_P)
    loss_P = pair_losses(
        margin_P, beta=beta, loss_type=loss_type, labels=labels, label_smoothing=label_smoothing,
        reward_gap_P=reward_gap_P, uniform_P=uniform_P,
    )  # fmt: skip
    weight_P = torch.ones_like(loss_P) if pair_weight_P is None else pair_weight_P.to(loss_P)
    preference = (loss_P * weight_P).sum() / weight_P.sum().clamp_min(torch.finfo(loss_P.dtype).tiny)

    ratio_C = log_ratio("calibration completions", logp_cal_C, ref_cal_C)
    value_C = value_terms(
        ratio_C, sign=sign, log_ratio_floor=log_ratio_floor, reduction=value_reduction, tokens_C=cal_tokens_C
    )
    if not value_center:
        # a constant: no floor
        value_C = value_C + value_terms(ref_cal_C, sign=-1, reduction=value_reduction, tokens_C=cal_tokens_C)
    weight_C = calibration_weights(cal_prompt_C, len(ratio_C)).to(value_C)
    value = sign * alpha * beta * (value_C * weight_C).sum()
    with torch.no_grad():
        metrics = preference_metrics(logp_chosen_P, logp_rejected_P, ref_chosen_P, ref_rejected_P, beta)
        metrics |= value_metrics(logp_cal_C, ratio_C, weight_C, beta, log_ratio_floor)
        metrics |= {"loss/preference": preference.detach(), "loss/value": value.detach()}
    return preference + value, metrics


def pair_losses(
    margin_P: Tensor,
    *,
    beta: float,
    loss_type: LossType = "sigmoid",
    labels: Labels = "hard",
    label_smoothing: float = 0.0,
    reward_gap_P: Tensor | None = None,
    uniform_P: Tensor | None = None,
) -> Tensor:
    """Each pair's loss, (P,), from the gap of log-ratios R(y+) - R(y-), in nats.

    sigmoid (DPO, arXiv 2305.18290 eq. 7): -p log sigmoid(beta gap) - (1 - p) log sigmoid(-beta gap), where p, the
    probability that the chosen one is better, is 1 (hard), 1 - `label_smoothing` (hard, cDPO), or
    sigmoid(`reward_gap_P`) (soft_bt: finite optimum beta gap = reward gap). sampled_bt draws the label: 1 where
    `uniform_P` (numbers in [0, 1)) is below that probability. ipo (arXiv 2310.12036 eq. 17): (gap - 1/(2 beta))^2.

    Raises ValueError for settings that do not go together, or what they need and is not given.
    """
    if loss_type not in ("sigmoid", "ipo"):
        raise ValueError(f"loss_type is {loss_type!r}: choose sigmoid or ipo")
    if loss_type == "ipo":
        if labels != "hard" or label_smoothing:
            raise ValueError(
                f"loss_type ipo takes hard labels (got labels {labels!r}, label_smoothing {label_smoothing}): its "
                "optimum is finite already; use sigmoid for soft labels"
            )
        return (margin_P - 1 / (2 * beta)).square()
    probability = _label(margin_P, labels, label_smoothing, reward_gap_P, uniform_P)
    logit_P = beta * margin_P
    return -probability * F.logsigmoid(logit_P) - (1 - probability) * F.logsigmoid(-logit_P)


def _label(
    margin_P: Tensor, labels: Labels, smoothing: float, reward_gap_P: Tensor | None, uniform_P: Tensor | None
) -> Tensor | float:
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"label_smoothing is {smoothing}: it must be in [0, 0.5); from 0.5 on labels say the opposite")
    if labels == "hard":
        return 1 - smoothing
    if labels not in ("soft_bt", "sampled_bt"):
        raise ValueError(f"labels is {labels!r}: choose hard, soft_bt or sampled_bt")
    if smoothing:
        raise ValueError(f"label_smoothing {smoothing} is for hard labels: labels {labels!r} are soft by their rewards")
    if reward_gap_P is None or reward_gap_P.shape != margin_P.shape:
        raise ValueError(f"labels {labels!r} need reward_gap_P, the chosen one's reward less the rejected one's")
    probability_P = torch.sigmoid(reward_gap_P.to(margin_P))
    if labels == "soft_bt":
        return probability_P
    if uniform_P is None or uniform_P.shape != margin_P.shape:
        raise ValueError("labels 'sampled_bt' need uniform_P, one random number in [0, 1) for each pair")
    return (uniform_P.to(margin_P) < probability_P).to(margin_P)


def value_terms(
    ratio_C: Tensor,
    *,
    sign: int,
    log_ratio_floor: float | None = None,
    reduction: ValueReduction = "sum",
    tokens_C: Tensor | None = None,
) -> Tensor:
    """What each calibration completion adds to the mean R, before s alpha beta; (C,).

    With optimism the loss falls without bound as R does; below `log_ratio_floor` a completion has no gradient any more.
    token_mean divides by the completion's tokens: a sum pushes long completions harder.

    Raises ValueError for token_mean without token counts, or with an empty completion.
    """
    value_C = ratio_C
    if log_ratio_floor is not None and sign > 0:
        value_C = value_C.clamp_min(log_ratio_floor)
    if reduction == "sum":
        return value_C
    if reduction != "token_mean":
        raise ValueError(f"value_reduction is {reduction!r}: choose sum or token_mean")
    if tokens_C is None or tokens_C.shape != ratio_C.shape or bool((tokens_C < 1).any()):
        raise ValueError("value_reduction token_mean needs cal_tokens_C, the tokens of each completion, above 0")
    return value_C / tokens_C.to(value_C)


def calibration_weights(cal_prompt_C: Tensor | None, count: int) -> Tensor:
    """Weights by which a sum over calibration completions is the mean over prompts of the mean within each, (C,).

    A flat mean would count prompts with more completions more. Sums to 1; empty where there are none.
    """
    if cal_prompt_C is None:
        return torch.full((count,), 1 / max(1, count), dtype=torch.float64)
    if cal_prompt_C.shape != (count,):
        raise ValueError(f"cal_prompt_C has shape {tuple(cal_prompt_C.shape)} for {count} calibration completions")
    _, prompt_C, counts = cal_prompt_C.unique(return_inverse=True, return_counts=True)
    return 1 / (counts[prompt_C].double() * max(1, len(counts)))


def xpo_alpha(coefficient: float, beta: float) -> float:
    """VPO's alpha for XPO's coefficient (arXiv 2405.21046): XPO's bonus has no beta in front."""
    check_settings(beta=beta, alpha=coefficient, sign=1)
    return coefficient / beta


def check_settings(*, beta: float, alpha: float, sign: int) -> None:
    """Raises ValueError naming the setting, its value and what it may be."""
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta is {beta}: it must be above 0; it weighs the KL to the reference")
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha is {alpha}: it must be 0 or more; pessimism is sign -1, not a negative alpha")
    if sign not in (1, -1):
        raise ValueError(f"sign is {sign}: it must be 1 (optimism, online) or -1 (pessimism, offline)")


def check_direction(sign: int) -> None:
    """One step down the value term's gradient on a toy policy lowers the calibration completion's log-prob with
    optimism (sign 1) and raises it with pessimism. Raises AssertionError where it does not: the sign is what this
    family most often has wrong."""
    logits_3 = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    before_1 = torch.log_softmax(logits_3, 0)[:1]
    empty_0 = torch.empty(0, dtype=torch.float64)
    loss, _ = vpo_loss(
        empty_0, empty_0, empty_0, empty_0, before_1, before_1.detach(), beta=1.0, alpha=1.0, sign=sign
    )
    (gradient_3,) = torch.autograd.grad(loss, logits_3)
    after_1 = torch.log_softmax(logits_3.detach() - 0.1 * gradient_3, 0)[:1]
    if bool((after_1 - before_1.detach()) * sign >= 0):
        raise AssertionError(f"sign {sign} moves the calibration completions the wrong way")


def preference_metrics(
    logp_chosen_P: Tensor, logp_rejected_P: Tensor, ref_chosen_P: Tensor, ref_rejected_P: Tensor, beta: float
) -> dict[str, Tensor]:
    """Means over pairs: implicit rewards beta R, their margin, the share of pairs that they order right, log-probs."""
    chosen_P, rejected_P = beta * (logp_chosen_P - ref_chosen_P), beta * (logp_rejected_P - ref_rejected_P)
    if not len(chosen_P):
        return {}
    return {
        "rewards/chosen": chosen_P.mean(), "rewards/rejected": rejected_P.mean(),
        "rewards/margins": (chosen_P - rejected_P).mean(),
        "rewards/accuracies": (chosen_P > rejected_P).to(chosen_P).mean(),
        "logps/chosen": logp_chosen_P.mean(), "logps/rejected": logp_rejected_P.mean(),
    }  # fmt: skip


def value_metrics(
    logp_cal_C: Tensor, ratio_C: Tensor, weight_C: Tensor, beta: float, log_ratio_floor: float | None
) -> dict[str, Tensor]:
    """J* as the calibration has it (-beta mean R), log-probs and log-ratios of the calibration completions."""
    if not len(ratio_C):
        return {}
    mean = (ratio_C * weight_C).sum()
    below = ratio_C < (float("-inf") if log_ratio_floor is None else log_ratio_floor)
    return {
        "value/jstar_hat": -beta * mean, "value/cal_logratio": mean, "value/cal_logratio_min": ratio_C.min(),
        "value/cal_logp": (logp_cal_C * weight_C).sum(), "value/floor_share": below.to(ratio_C).mean(),
    }  # fmt: skip


def log_ratio(what: str, logp: Tensor, reference: Tensor) -> Tensor:
    """log pi - log pi_ref. Raises ValueError where shapes differ or a reference log-prob is not finite."""
    if logp.shape != reference.shape or logp.ndim != 1:
        raise ValueError(
            f"{what}: log-probs have shape {tuple(logp.shape)} and those of the reference {tuple(reference.shape)}; "
            "both must be one number for each completion"
        )
    if not bool(reference.isfinite().all()):
        place = int((~reference.isfinite()).nonzero()[0])
        raise ValueError(f"{what}: the reference's log-prob of number {place} is {float(reference[place])}")
    return logp - reference

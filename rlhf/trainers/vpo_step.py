"""One optimizer step of preference learning as numbers: how the loss changes with each completion's log-prob.

Shapes: S completions of a rank; P pairs and C calibration completions among them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.algorithms.preference import (
    calibration_weights,
    log_ratio,
    pair_losses,
    preference_metrics,
    value_terms,
)
from rlhf.config.vpo import PreferenceConfig

Total = Callable[[Mapping[str, float]], dict[str, float]]
"""Sums numbers by name over ranks."""


class Completions(NamedTuple):
    """Summed log-probs under policy and reference, (S,) float64 in nats, and tokens, (S,)."""

    logp_S: Tensor
    ref_S: Tensor
    tokens_S: Tensor


class Pair(NamedTuple):
    """Places of two completions, the pair's weight, the gap of their rewards, and a number in [0, 1) for sampled
    labels."""

    chosen: int
    rejected: int
    weight: float
    reward_gap: float
    uniform: float


@dataclass(frozen=True, slots=True)
class StepGradient:
    """`gradient_S`: dL / d log pi(y), float64. `loss` and metrics are over all ranks."""

    gradient_S: Tensor
    loss: float
    metrics: dict[str, float]


def preference_step(
    completions: Completions,
    pairs: Sequence[Pair],
    calibration: Sequence[tuple[int, int]],
    config: PreferenceConfig,
    alpha: float,
    total: Total,
) -> StepGradient:
    """The loss of `preference.vpo_loss` over all ranks, and its gradient by this rank's log-probs.

    `calibration`: (place, prompt) of each calibration completion; a prompt is on one rank. `total` is called twice.

    Raises ValueError where a reference log-prob is not finite.
    """
    sign, scale = config.direction, config.direction * alpha * config.beta
    logp_S = completions.logp_S.detach().requires_grad_()
    ratio_S = log_ratio("completions", logp_S, completions.ref_S)
    columns = torch.tensor(pairs, dtype=torch.float64).reshape(len(pairs), len(Pair._fields))
    chosen_P, rejected_P = columns[:, 0].long(), columns[:, 1].long()
    weight_P, gap_P, uniform_P = columns[:, 2], columns[:, 3], columns[:, 4]
    loss_P = pair_losses(
        ratio_S[chosen_P] - ratio_S[rejected_P], beta=config.beta, loss_type=config.loss_type, labels=config.labels,
        label_smoothing=config.label_smoothing, reward_gap_P=gap_P / config.reward_temperature, uniform_P=uniform_P,
    )  # fmt: skip
    place_C, prompt_C = torch.tensor(calibration, dtype=torch.long).reshape(len(calibration), 2).unbind(1)
    prompts = len(prompt_C.unique())
    value_C = value_terms(
        ratio_S[place_C], sign=sign, log_ratio_floor=config.log_ratio_floor, reduction=config.value_reduction,
        tokens_C=completions.tokens_S[place_C],
    )  # fmt: skip
    counts = total({"pairs": len(pairs), "weight": float(weight_P.sum()), "prompts": prompts, "values": len(place_C)})
    # a mean over this rank's prompts, with the weight that they have among all
    weight_C = calibration_weights(prompt_C, len(place_C)) * (prompts / max(1, counts["prompts"]))
    preference = (loss_P * weight_P).sum() / max(counts["weight"], torch.finfo(torch.float64).tiny)
    value = scale * (value_C * weight_C).sum()
    (gradient_S,) = torch.autograd.grad(preference + value, logp_S)
    sums = {"loss/preference": preference, "loss/value": value}
    with torch.no_grad():
        sums |= _sums(completions, ratio_S, chosen_P, rejected_P, place_C, weight_C, config)
    summed = total({name: float(number.detach()) for name, number in sums.items()})
    return StepGradient(gradient_S, summed["loss/preference"] + summed["loss/value"], _metrics(summed, counts, config))


def _sums(
    completions: Completions, ratio_S: Tensor, chosen_P: Tensor, rejected_P: Tensor, place_C: Tensor, weight_C: Tensor,
    config: PreferenceConfig,
) -> dict[str, Tensor]:  # fmt: skip
    """What adds up over ranks: sums over pairs, and this rank's share of means over prompts."""
    logp_S, ref_S = completions.logp_S, completions.ref_S
    means = preference_metrics(logp_S[chosen_P], logp_S[rejected_P], ref_S[chosen_P], ref_S[rejected_P], config.beta)
    names = (
        "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"
    )  # fmt: skip
    zero, floor = torch.zeros(()), config.log_ratio_floor
    below_C = ratio_S[place_C] < (float("-inf") if floor is None else floor)
    return {name: means.get(name, zero) * len(chosen_P) for name in names} | {
        "logps/chosen_ratio": ratio_S[chosen_P].sum(), "value/cal_logratio": (ratio_S[place_C] * weight_C).sum(),
        "value/cal_logp": (logp_S[place_C] * weight_C).sum(), "value/floor_share": below_C.double().sum(),
    }  # fmt: skip


def _metrics(summed: Mapping[str, float], counts: Mapping[str, float], config: PreferenceConfig) -> dict[str, float]:
    metrics = {name: value for name, value in summed.items() if name.startswith("loss/")}
    metrics["pairs/count"] = counts["pairs"]
    if counts["pairs"]:
        metrics |= {n: v / counts["pairs"] for n, v in summed.items() if n.startswith(("rewards/", "logps/"))}
    if counts["prompts"]:
        metrics |= {name: summed[name] for name in ("value/cal_logratio", "value/cal_logp")}
        metrics["value/floor_share"] = summed["value/floor_share"] / counts["values"]
        metrics["value/jstar_hat"] = -config.beta * summed["value/cal_logratio"]
    return metrics

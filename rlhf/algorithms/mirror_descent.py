"""Where the policy is led between switches of the critic: pi_n(a|s) proportional to pi_ref(a|s) exp(kappa_n Q(s, a)).

n multiplicative updates with a frozen critic have this closed form, so that the whole state of the actor is one number,
and the target needs no gradient. A reset drops what superseded critics have left in the exponent (arXiv 2505.03710; the
reset to a reference policy instead of the uniform one is a transfer to language models).

Suffixes: N states, m candidates, C = m + 1 the candidates and the rest of the vocabulary as one bucket.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf.algorithms.value_targets import check_positive

ScheduleKind = Literal["saturate", "anytime", "theory"]
ResetMode = Literal["target", "hard", "jump", "none"]
RESET_MODES: tuple[ResetMode, ...] = ("target", "hard", "jump", "none")


@dataclass(frozen=True, slots=True)
class KappaSchedule:
    """kappa_n after n actor phases since the last reset, in nats per unit of value, never above `kappa_max`.

    saturate: n kappa_max / n_sat. anytime: sqrt(n kl_budget) / value_range. theory: n sqrt(log m / (T range^2)) for
    `total_phases` T and `candidates` m, which had 29 times the regret of a constant 0.5 on a tabular lock: for
    reproduction only. `kappa_max` is 1 / tau for a critic with soft targets.

    Raises ValueError for an unknown kind or numbers that are not above 0.
    """

    kind: ScheduleKind = "saturate"
    kappa_max: float = 20.0
    n_sat: int = 8
    kl_budget: float = 4.0
    value_range: float = 1.0
    total_phases: int = 1000
    candidates: int = 32

    def __post_init__(self) -> None:
        if self.kind not in ("saturate", "anytime", "theory"):
            raise ValueError(f"unknown schedule {self.kind!r}: choose saturate, anytime or theory")
        for name in ("kappa_max", "n_sat", "kl_budget", "value_range", "total_phases"):
            check_positive(name, getattr(self, name))
        if self.candidates < 2:
            raise ValueError(f"candidates must be at least 2, got {self.candidates}: with one there is no choice")

    def kappa(self, phases: int) -> float:
        if self.kind == "saturate":
            # the last step exactly
            return self.kappa_max * min(1.0, phases / self.n_sat)
        if self.kind == "anytime":
            return min(self.kappa_max, math.sqrt(phases * self.kl_budget) / self.value_range)
        return min(self.kappa_max, phases * math.sqrt(math.log(self.candidates) / self.total_phases) / self.value_range)

    @property
    def saturation(self) -> int:
        """The first n with kappa_n = kappa_max."""
        if self.kind == "saturate":
            return self.n_sat
        if self.kind == "anytime":
            return math.ceil((self.kappa_max * self.value_range) ** 2 / self.kl_budget)
        return math.ceil(
            self.kappa_max * self.value_range * math.sqrt(self.total_phases / math.log(self.candidates))
        )


class MirrorDescent:
    """The state of the actor between switches: n, and with it kappa_n.

    Modes of reset at a switch: target, n = 0 and the policy's weights stay. hard: n = 0, weights go back to the
    reference policy and the optimizer's state is dropped (`reloads_reference`). jump: n = saturation at once, so that
    there is no dip; old critics are forgotten all the same. none: old exponents stay; the target is then built on the
    previous target (`starts_from_previous`) with the step kappa_n - kappa_{n-1}; for ablations.

    Raises ValueError for an unknown mode.
    """

    def __init__(self, schedule: KappaSchedule, mode: ResetMode = "jump") -> None:
        if mode not in RESET_MODES:
            raise ValueError(f"unknown reset mode {mode!r}: choose from {', '.join(RESET_MODES)}")
        self.schedule, self.mode = schedule, mode
        self.n = schedule.saturation if mode == "jump" else 0

    @property
    def kappa(self) -> float:
        """What the critic's values are multiplied by in this phase's target."""
        if self.starts_from_previous:
            return self.schedule.kappa(self.n) - self.schedule.kappa(max(0, self.n - 1))
        return self.schedule.kappa(self.n)

    @property
    def reloads_reference(self) -> bool:
        return self.mode == "hard"

    @property
    def starts_from_previous(self) -> bool:
        return self.mode == "none"

    def advance(self) -> None:
        """Begin the next actor phase."""
        self.n += 1

    def reset(self) -> None:
        """At a switch, before the phase that follows it begins."""
        if self.mode != "none":
            self.n = self.schedule.saturation if self.mode == "jump" else 0

    def state_dict(self) -> dict[str, int | str]:
        return {"n": self.n, "mode": self.mode}

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Raises ValueError where the mode is not the one that the state was taken with."""
        if state["mode"] != self.mode:
            raise ValueError(f"the checkpoint resets by {state['mode']!r}, and this run by {self.mode!r}")
        self.n = state["n"]


def with_rest(logp_Nm: Tensor) -> Tensor:
    """Log-probs of the candidates and of all other tokens together, (N, m + 1).

    Where rounding leaves nothing for the others their probability is the least normal number, and has no gradient.
    """
    rest_N = (1 - logp_Nm.exp().sum(-1, keepdim=True)).clamp_min(torch.finfo(logp_Nm.dtype).tiny)
    return torch.cat([logp_Nm, rest_N.log()], dim=-1)


def mirror_target(logp_base_NC: Tensor, q_Nm: Tensor, kappa: float) -> Tensor:
    """log pi(a|s) = log pi_base(a|s) + kappa A(s, a) - log Z, (N, m + 1), without gradient.

    A = Q minus its mean over the candidates under the base, and 0 for the rest bucket. The base has its rest bucket in
    the last place (`with_rest`); it is the reference policy, or the previous target where nothing is reset.
    """
    advantage_Nm = _candidate_advantages(logp_base_NC[:, :-1], q_Nm)
    raised_NC = logp_base_NC + kappa * torch.nn.functional.pad(advantage_Nm, (0, 1))
    return raised_NC.log_softmax(-1).detach()


def guided_logits(logits_NV: Tensor, id_Nm: Tensor, q_Nm: Tensor, kappa: float, temperature: float = 1.0) -> Tensor:
    """Logits (N, V) whose softmax at `temperature` is `mirror_target` of the base softmax(logits / temperature), with
    the rest bucket spread as the base spreads it: tokens that are no candidates keep their logits.

    `id_Nm`: the candidates, each once. kappa 0 gives the logits back bit by bit.
    """
    base_Nm = logits_NV.gather(-1, id_Nm) / temperature
    advantage_Nm = _candidate_advantages(base_Nm, q_Nm.to(base_Nm))
    return logits_NV.scatter_add(-1, id_Nm, temperature * kappa * advantage_Nm)


def _candidate_advantages(logp_base_Nm: Tensor, q_Nm: Tensor) -> Tensor:
    """Q minus its mean under the base's share of each candidate; log-probs may lack their normaliser."""
    # an empty place has log-prob -inf and whatever value
    q_Nm = q_Nm.masked_fill(logp_base_Nm.isneginf(), 0.0)
    return q_Nm - (logp_base_Nm.softmax(-1) * q_Nm).sum(-1, keepdim=True)


def logit_match_losses(logp_target_NC: Tensor, logp_NC: Tensor) -> Tensor:
    """KL(target || policy) of each state over candidates and rest, (N,), in nats. No importance weights: it is a
    regression for each state, whichever policy came there."""
    target_NC = logp_target_NC.exp()
    # 0 log 0 = 0
    terms_NC = torch.where(target_NC > 0, target_NC * (logp_target_NC - logp_NC), 0.0)
    return terms_NC.sum(-1)

"""How much an ensemble's values are raised where its members disagree, or where data are few.

Optimism belongs in the values. A bonus on the policy's own log-probs under a KL penalty to a reference policy explores
where that reference already is likely (arXiv 2510.03269).

Suffixes: N states, K members, m candidates; `q_NKm` may as well be values of states, (N, K).
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rlhf.algorithms.value_targets import check_positive

OptimismKind = Literal["ucb", "max_in_set", "lme", "elliptic", "mex", "none"]
KINDS: tuple[OptimismKind, ...] = ("ucb", "max_in_set", "lme", "elliptic", "mex", "none")


@dataclass(frozen=True, slots=True)
class Optimism:
    """Values of the ensemble as one optimistic value, within [v_min, v_max].

    ucb: mean + `bonus` times the unbiased standard deviation over members. max_in_set: the maximum over the members of
    the confidence set. lme: `temperature` log mean exp(Q / temperature), between the mean (large) and the maximum
    (small). elliptic: mean + `bonus` times sqrt(phi' Lambda^-1 phi), which is not propagated: add it to the targets
    too. mex: the mean; members were trained with `mex_loss`. none: the mean, for a critic without optimism.

    Raises ValueError for an unknown kind, an empty range, a negative bonus or a temperature that is not above 0.
    """

    kind: OptimismKind = "ucb"
    bonus: float = 1.0
    temperature: float = 0.05
    v_min: float = 0.0
    v_max: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of optimism {self.kind!r}: choose from {', '.join(KINDS)}")
        if not self.v_min < self.v_max:
            raise ValueError(f"v_min must be below v_max, got {self.v_min} and {self.v_max}")
        if not self.bonus >= 0:
            raise ValueError(f"bonus must be 0 or more, got {self.bonus}: pessimism is not one of the kinds")
        check_positive("temperature", self.temperature)

    def __call__(self, q_NKm: Tensor, *, in_set_K: Tensor | None = None, width_Nm: Tensor | None = None) -> Tensor:
        """(N, m). `in_set_K` for max_in_set, from `confidence_set`; `width_Nm` for elliptic, from `GramMatrices.width`.

        Raises ValueError where these are missing, no member is in the set, or ucb has one member only.
        """
        return self._raised(q_NKm, in_set_K, width_Nm).clamp(self.v_min, self.v_max)

    def _raised(self, q_NKm: Tensor, in_set_K: Tensor | None, width_Nm: Tensor | None) -> Tensor:
        if self.kind == "ucb":
            return upper_confidence(q_NKm, self.bonus)
        if self.kind == "max_in_set":
            if in_set_K is None or not in_set_K.any():
                raise ValueError("max_in_set needs in_set_K with at least one member in the set (`confidence_set`)")
            return q_NKm[:, in_set_K].amax(1)
        if self.kind == "lme":
            return log_mean_exp(q_NKm, self.temperature)
        if self.kind == "elliptic":
            if width_Nm is None:
                raise ValueError("elliptic optimism needs width_Nm, sqrt(phi' Lambda^-1 phi) of every action")
            return q_NKm.mean(1) + self.bonus * width_Nm
        return q_NKm.mean(1)


def upper_confidence(q_NKm: Tensor, bonus: float) -> Tensor:
    """mean + bonus std over members, (N, m), not clipped; the standard deviation is the unbiased one.

    Raises ValueError for a single member where bonus is not 0.
    """
    if bonus == 0:
        return q_NKm.mean(1)
    if q_NKm.shape[1] < 2:
        raise ValueError("ucb needs at least two members: one has no standard deviation")
    return q_NKm.mean(1) + bonus * q_NKm.std(1)


def log_mean_exp(q_NKm: Tensor, temperature: float) -> Tensor:
    """temperature log mean exp(Q / temperature) over members, (N, m). With the KL coefficient as temperature it is the
    KL-regularised optimum under uncertain rewards (arXiv 2606.09073)."""
    check_positive("temperature", temperature)
    return temperature * ((q_NKm / temperature).logsumexp(1) - math.log(q_NKm.shape[1]))


def confidence_set(loss_K: Tensor, actions: int, radius: float) -> Tensor:
    """Members whose loss on `actions` actions together exceeds the least by at most `radius`, (K,) bool.

    `loss_K`: mean squared Bellman errors on actions that no member learns from. The least one is always within.
    """
    return actions * (loss_K - loss_K.min()) <= radius


def set_radius(value_range: float, members: int, actions: int) -> float:
    """range^2 (log K + log N): the radius of a confidence set over a finite class, without its constant."""
    return value_range**2 * (math.log(members) + math.log(max(1, actions)))


def mex_loss(loss: Tensor, value_XK: Tensor, weight: float) -> Tensor:
    """The critic's loss minus `weight` times the members' mean value of X prompts: one objective in place of a
    maximum over a confidence set (MEX, arXiv 2305.18258)."""
    return loss - weight * value_XK.mean()


def mex_weight(initial: float, episodes: int) -> float:
    """initial / sqrt(episodes): optimism fades as data grow."""
    return initial / math.sqrt(max(1, episodes))

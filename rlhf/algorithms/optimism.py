"""What does an ensemble of critics promise at best for an action, and which of its members do the data still allow?

The ensemble is the LAST axis everywhere here: a critic's q (N, K, M) goes in as `q.mT`, its v (N, K) as it is. Each
member has targets of its own, so that disagreement travels backward in time; what is read off the ensemble is optimism
about what is not known yet, and is clipped to the range of returns, as the tabular optimistic critic is.

Suffixes: X any leading axes, K ensemble members.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

OptimismKind = Literal["ucb", "max_in_set", "lme", "elliptic", "mex", "none", "min"]


@dataclass(frozen=True, slots=True)
class Optimism:
    """How the members' values become one.

    ucb: mean + `bonus_scale` times the unbiased standard deviation. max_in_set: the largest over members of the
    confidence set, the literal reading of the theory (arXiv 2505.03710); it needs many members. lme:
    `temperature` log mean exp(q / `temperature`), between the mean (infinity) and the maximum (0), the optimistic
    branch of a KL-regularised optimum under an uncertain reward (arXiv 2606.09073). elliptic: mean + `bonus_scale`
    times a given bonus, which must be added to the targets as well, or it is not propagated. mex: the mean, the
    optimism being in the training (`mex_term`). none: the mean. min: pessimism.

    `bounds`: range of returns. Raises ValueError for settings out of range.
    """

    kind: OptimismKind = "ucb"
    bounds: tuple[float, float] = (0.0, 1.0)
    bonus_scale: float = 1.0
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if self.kind not in get_args(OptimismKind):
            raise ValueError(f"optimism kind is {self.kind!r}: choose {', '.join(get_args(OptimismKind))}")
        low, high = self.bounds
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"bounds are {self.bounds}: they must be finite, the lower below the upper")
        if not (0 <= self.bonus_scale < math.inf and 0 < self.temperature < math.inf):
            raise ValueError(
                f"bonus_scale {self.bonus_scale}, temperature {self.temperature}: the first must be 0 or more, the "
                "second above 0"
            )


def optimistic_value(
    value_XK: Tensor, optimism: Optimism, *, in_set_K: Tensor | None = None, bonus_X: Tensor | None = None
) -> Tensor:
    """One value for each of X, within `optimism.bounds`.

    `in_set_K`: members that max_in_set may choose from (`confidence_set`). `bonus_X`: what elliptic adds, e.g.
    sqrt(phi' Lambda^-1 phi). Raises ValueError where the kind lacks what it needs.
    """
    return _combine(value_XK, optimism, in_set_K, bonus_X).clamp(*optimism.bounds)


def _combine(value_XK: Tensor, optimism: Optimism, in_set_K: Tensor | None, bonus_X: Tensor | None) -> Tensor:
    mean_X = value_XK.mean(-1)
    match optimism.kind:
        case "ucb":
            return mean_X + optimism.bonus_scale * member_deviation(value_XK)
        case "max_in_set":
            if in_set_K is None or in_set_K.shape != value_XK.shape[-1:] or not bool(in_set_K.any()):
                raise ValueError("max_in_set needs in_set_K, one flag for each member and at least one of them set")
            return value_XK.masked_fill(~in_set_K, -math.inf).amax(-1)
        case "lme":
            scaled_XK = value_XK / optimism.temperature
            return optimism.temperature * (scaled_XK.logsumexp(-1) - math.log(value_XK.shape[-1]))
        case "elliptic":
            if bonus_X is None or bonus_X.shape != mean_X.shape:
                raise ValueError(f"elliptic needs bonus_X, one number for each of {tuple(mean_X.shape)} values")
            return mean_X + optimism.bonus_scale * bonus_X.to(mean_X)
        case "min":
            return value_XK.amin(-1)
        case _:
            return mean_X


def member_deviation(value_XK: Tensor) -> Tensor:
    """Unbiased standard deviation over members. Raises ValueError for a single one: it knows nothing of its doubt."""
    if value_XK.shape[-1] < 2:
        raise ValueError("the spread of an ensemble needs at least 2 members on the last axis")
    return value_XK.std(-1)


def confidence_set(loss_K: Tensor, *, count: int, radius: float) -> Tensor:
    """Members whose total excess loss `count` (L_k - min_j L_j) is at most `radius`; (K,) bool, never empty.

    `loss_K`: mean squared Bellman errors on data that no member was trained on; `count`: actions in all data. Raises
    ValueError for a loss that is not finite: such a member would drop out in silence.
    """
    if not bool(loss_K.isfinite().all()):
        raise ValueError(f"losses of the members are {loss_K.tolist()}: all must be finite to be compared")
    return count * (loss_K - loss_K.min()) <= radius


def confidence_radius(*, value_range: float, members: int, count: int) -> float:
    """value_range^2 (log members + log count): the usual form up to its constant, which is a choice and not proven."""
    if members < 1 or count < 1:
        raise ValueError(f"members {members}, count {count}: both must be at least 1")
    return value_range**2 * (math.log(members) + math.log(count))


def mex_term(start_value_BK: Tensor, *, alpha: float, episodes: int) -> Tensor:
    """What MEX (arXiv 2305.18258) adds to the critic's loss: -alpha / sqrt(episodes) times the mean value of prompts.

    It pushes values of start states up until the Bellman loss pushes back. Raises ValueError for `episodes` below 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}: the weight alpha / sqrt(episodes) needs at least 1")
    return -alpha / math.sqrt(episodes) * start_value_BK.mean()

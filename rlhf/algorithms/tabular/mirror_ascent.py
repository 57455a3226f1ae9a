"""What is the actor after n steps of mirror ascent on a frozen critic, and what does forgetting the past buy?

n steps pi <- pi exp(eta f) / Z on the same f have a closed form, pi_n = pi_0 exp(n eta f) / Z: the actor is the
exponent it started from and one number kappa_n = n eta. A reset at a switch of critics drops that exponent (arXiv
2505.03710), so that a wrong critic's lead need not be made up for.
"""

import math
from typing import Literal

import numpy as np

from rlhf.algorithms.tabular.mdp import Array

StepSize = float | Literal["anytime", "theory"]


def boltzmann(exponent: Array) -> Array:
    """exp(exponent) normalised along the last axis."""
    weight = np.exp(exponent - exponent.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def accumulated_weight(
    steps: Array, step_size: StepSize, *, actions: int, value_max: float = 1.0, episodes: int | None = None
) -> Array:
    """kappa_n of the critic after n = `steps` steps with it, elementwise.

    A number eta: n eta. theory: n sqrt(log A / T) / value_max, with T = `episodes`, what the regret bound asks for up
    to its constant and far too slow in practice. anytime: sqrt(n log A) / value_max, steps that shrink after a switch.

    Raises ValueError for an eta not above 0, or theory without `episodes`.
    """
    if step_size == "anytime":
        return np.sqrt(steps * math.log(actions)) / value_max
    if step_size == "theory":
        if not episodes:
            raise ValueError("step size theory needs episodes, the length of the run")
        return steps * (math.sqrt(math.log(actions) / episodes) / value_max)
    check_step_size(step_size)
    return steps * step_size


def steps_until_preferred(
    probability: float, *, step_size: float, gap: float, actions: int, opponents_lead: float | None = None
) -> float:
    """Steps until the best action has `probability`, where the critic gives it `gap` more than any other; not rounded.

    From uniform: log((A - 1) p / (1 - p)) / (eta gap). With `opponents_lead`, the exponent by which one other action
    leads, and so far that the rest do not count: (lead + log(p / (1 - p))) / (eta gap). Raises ValueError for a
    probability outside (0, 1), or a gap or step size not above 0.
    """
    if not 0 < probability < 1 or not gap > 0:
        raise ValueError(f"probability {probability}, gap {gap}: probability must be in (0, 1) and the gap above 0")
    check_step_size(step_size)
    log_odds = math.log(probability / (1 - probability))
    needed = log_odds + (math.log(actions - 1) if opponents_lead is None else opponents_lead)
    return needed / (step_size * gap)


def check_step_size(step_size: StepSize) -> None:
    """Raises ValueError naming the setting, its value and what it may be."""
    if isinstance(step_size, str):
        if step_size not in ("anytime", "theory"):
            raise ValueError(f"step_size is {step_size!r}: choose a number, anytime or theory")
    elif not 0 < step_size < math.inf:
        raise ValueError(f"step_size is {step_size}: it must be above 0 and finite")

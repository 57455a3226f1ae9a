"""Estimators of KL(pi || pi_ref) from the log-probs of sampled tokens (J. Schulman, "Approximating KL divergence",
2020)."""

from typing import Literal

from torch import Tensor

from rlhf.algorithms.policy_losses import LOG_RATIO_LIMIT

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(logp_N: Tensor, reference_logp_N: Tensor, estimator: Estimator) -> Tensor:
    """Per-token estimate, with log r = log pi_ref - log pi.

    k1 = -log r: unbiased, high variance, can be negative. Its gradient has expectation 0: use it in the reward, not
    in a loss.
    k2 = (log r)^2 / 2: biased in value; as a loss its gradient is that of the KL.
    k3 = r - 1 - log r: unbiased in value, never negative.
    """
    log_r_N = reference_logp_N - logp_N
    if estimator == "k1":
        return -log_r_N
    if estimator == "k2":
        return log_r_N.square() / 2
    bounded_N = log_r_N.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return bounded_N.exp() - 1 - bounded_N

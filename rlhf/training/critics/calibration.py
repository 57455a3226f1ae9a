"""Does an ensemble know how wrong it is? Returns of unseen episodes against the members' values and spread."""

from torch import Tensor

from rlhf.training.collectives import sum_numbers

LEAST_SPREAD = 1e-6


def calibration(value_BK: Tensor | None, outcome_BK: Tensor | None, device: object) -> dict[str, float]:
    """Of the prompts' values and of what episodes that no member has seen earned, (B, K) or (B, 1), as each member
    counts it; None where this rank has none. Collective.

    `critic/calibration`: mean |return - value| in the members' standard deviations. A single outcome is noisy: where
    returns are 0 or 1, it is large for a critic that knows the chances well and agrees about them.
    """
    sums = dict.fromkeys(("episodes", "ratio", "within one", "within two", "spread", "mean"), 0.0)
    if value_BK is not None:
        spread_B = value_BK.std(-1).clamp_min(LEAST_SPREAD)
        ratio_B = (outcome_BK - value_BK).mean(-1).abs() / spread_B
        sums = {
            "episodes": float(len(ratio_B)), "ratio": float(ratio_B.sum()), "spread": float(spread_B.sum()),
            "within one": float((ratio_B <= 1).sum()), "within two": float((ratio_B <= 2).sum()),
            "mean": float(value_BK.mean(-1).sum()),
        }  # fmt: skip
    total = sum_numbers(sums, device)
    count = max(total["episodes"], 1.0)
    return {
        "critic/calibration": total["ratio"] / count, "critic/within_one_std": total["within one"] / count,
        "critic/within_two_std": total["within two"] / count, "critic/prompt_spread": total["spread"] / count,
        "critic/prompt_value": total["mean"] / count,
    }  # fmt: skip

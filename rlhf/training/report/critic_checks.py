"""What goes wrong with critics, looked for in a run's metrics: the report's checks of value-based recipes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.training.report.page import Check

Record = Mapping[str, Any]

PINNED, FORCED, VIOLATED, COLLAPSED, OUTSIDE = 0.9, 0.8, 0.2, 0.01, 0.05


def critic_checks(metrics: Sequence[Record]) -> list[Check]:
    """None for a run without an ensemble."""
    found = []
    if pinned := _late(metrics, "critic/pinned_at_bound"):
        text = (
            f"prompts whose optimistic value is at its upper bound: {100 * pinned[-1]:.0f} % in the last step (if the "
            "bonus is too large, or the priors are not fitted: lower optimism.bonus_scale, raise ensemble.updates)"
        )
        found.append(Check(pinned[-1] <= PINNED, text))
    if outside := _late(metrics, "critic/outside_bounds", share=1.0):
        text = (
            f"completions that earned what no value may say: {100 * max(outside):.0f} % in the worst step (widen "
            "algorithm.actions.bounds to what rewards can be; LOOP: algorithm.gain.span)"
        )
        found.append(Check(max(outside) <= OUTSIDE, text))
    if violations := _late(metrics, "critic/optimism_violations"):
        mean = sum(violations) / len(violations)
        text = f"completions that did better than the guiding critic promised: {100 * mean:.0f} % in the last quarter"
        found.append(Check(mean <= VIOLATED, text))
    if spreads := _late(metrics, "critic/spread", share=1.0):
        text = (
            f"disagreement of the members: {spreads[0]:.3g} in the first step, {spreads[-1]:.3g} in the last (near 0 "
            "from the start on they have collapsed: raise ensemble.prior_scale)"
        )
        found.append(Check(spreads[0] > COLLAPSED or len(spreads) < 2, text))
    if exchanges := _late(metrics, "switch/exchanged", share=1.0):
        forced = sum(_late(metrics, "switch/forced", share=1.0))
        text = f"exchanges of the guiding critic: {sum(exchanges):.0f}, {forced:.0f} of them because of max_steps alone"
        found.append(Check(sum(exchanges) > 0 and forced <= FORCED * sum(exchanges), text))
    if alarms := _late(metrics, "gain/alarm", share=1.0):
        text = (
            f"steps in which the learned gain was far from what the policy earns: {sum(alarms):.0f} (lower gain.rate, "
            "or use newton)"
        )
        found.append(Check(not sum(alarms), text))
    return found


def _late(metrics: Sequence[Record], name: str, share: float = 0.25) -> list[float]:
    values = [float(record[name]) for record in metrics if isinstance(record.get(name), int | float)]
    finite = [value for value in values if math.isfinite(value)]
    return finite[-max(1, int(share * len(finite))) :] if finite else []

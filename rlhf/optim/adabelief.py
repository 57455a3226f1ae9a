"""AdaBelief (Zhuang et al. 2020, arXiv 2010.07468): a step is large where gradients agree with their running mean."""

from collections.abc import Iterable, Mapping
from typing import Any

from rlhf.optim.base import FlatOptimizer, Slot, lacks_layout
from rlhf.optim.bounded_step import RULE, bounded_step

ADABELIEF_KEYS = {
    "eps_mode": "accumulate", "weight_decouple": True, "fixed_decay": False, "rectify": False,
    "degenerated_to_sgd": True, "amsgrad": False,
}  # fmt: skip
"""The rule's settings and their defaults; see `AdaBeliefRule`."""


class AdaBelief(FlatOptimizer):
    """AdaBelief as adabelief-pytorch 0.2.1 computes it, but with `rectify` off.

    Rectification makes the first five steps plain momentum steps of size lr * m: at the learning rates and gradients of
    RL fine-tuning they do nothing. `eps` is added to the stored moment at every step (`eps_mode`), so it acts like an
    Adam eps of sqrt(eps / (1 - beta2)): 1e-16 like 3e-7, 1e-19 like 1e-8. `max_update_rms` bounds the RMS of a tensor's
    step over lr: gradients that persist make steps grow without it (docs/optimizers.md).

    State: two values a parameter, three with `amsgrad`. Raises ValueError for settings that contradict each other.
    """

    def __init__(
        self, params: Iterable, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-16,
        weight_decay: float = 0.0, *, max_update_rms: float | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        """`settings`: those of `AdaBeliefRule` and of `SHARED_DEFAULTS`."""
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay,
                    "max_update_rms": max_update_rms}  # fmt: skip
        super().__init__(params, defaults | ADABELIEF_KEYS, settings)

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        check_adabelief(group)
        limit = group["max_update_rms"]
        if limit is not None and limit <= 0:
            raise ValueError(f"max_update_rms is {limit}: it must be above 0, or None for no bound")
        if limit is not None and group["rectify"]:
            raise ValueError("max_update_rms bounds adaptive steps, and rectify has others: turn one of them off")

    def allocate(self, group: Mapping[str, Any], slot: Slot) -> None:
        self.allocate_full(group, slot, RULE)

    def update_group(self, group: dict[str, Any], slots: list[Slot], gradient_rms: float | None) -> None:
        lr = float(group["lr"])
        if group["max_update_rms"] is None:
            self.update_full(group, slots, RULE, lr)
            return
        if lacks_layout(group):
            raise ValueError(
                "max_update_rms bounds the step of a tensor, and DeepSpeed's flat partitions have several: call "
                "rlhf.optim.zero.attach_zero_layout(engine) after deepspeed.initialize"
            )
        for slot in slots:
            self.allocate_full(group, slot, RULE)
        bounded_step(group, slots, lr)


def check_adabelief(group: Mapping[str, Any]) -> None:
    """Raises ValueError where AdaBelief's settings contradict each other."""
    if group["eps_mode"] not in ("accumulate", "additive"):
        raise ValueError(f"eps_mode is {group['eps_mode']!r}: choose accumulate or additive")
    if group["eps"] == 0:
        raise ValueError(f"eps is {group['eps']}: elements without a gradient would divide 0 by 0; use 1e-16 or 1e-19")
    if group["eps_mode"] == "additive" and group["rectify"]:
        raise ValueError("eps_mode additive corrects the second moment, rectify uses it as stored: choose one")

"""The learning rate as a pure function of the optimizer step, so that resuming needs no scheduler state."""

import math

from rlhf.config.optimizer import ScheduleConfig


def learning_rate_factor(update: int, total_updates: int, config: ScheduleConfig) -> float:
    """Factor of the peak learning rate at optimizer step `update` (counted from 0) of `total_updates`."""
    if update < config.warmup_steps:
        return (update + 1) / config.warmup_steps
    if config.type == "constant":
        return 1.0
    span = max(1, total_updates - 1 - config.warmup_steps)
    progress = min(1.0, (update - config.warmup_steps) / span)
    shape = 1 - progress if config.type == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.final_ratio + (1 - config.final_ratio) * shape

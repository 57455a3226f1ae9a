"""From the optimizer section of a configuration to a torch optimizer."""

import torch

from rlhf.config.optimizer import AdamWConfig, OptimizerConfig


def build_optimizer(config: OptimizerConfig, named_parameters: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer over (master) parameters by name; vectors (norms, biases) are not decayed."""
    decayed = [parameter for parameter in named_parameters.values() if parameter.ndim >= 2]
    others = [parameter for parameter in named_parameters.values() if parameter.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": getattr(config, "weight_decay", 0.0)},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if isinstance(config, AdamWConfig):
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    raise TypeError(f"no optimizer is built for {type(config).__name__}")

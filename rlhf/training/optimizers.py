"""From the optimizer section of a configuration to a torch optimizer."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rlhf.config.optimizer import (
    AdaBeliefConfig,
    AdamW8bitConfig,
    AdamWConfig,
    AuONConfig,
    FrugalConfig,
    MuonConfig,
    OptimizerConfig,
    libraries_of,
)
from rlhf.optim import AdaBelief, AuON, Frugal
from rlhf.optim.muon import MatrixMomentum
from rlhf.optim.parameter_groups import Overrides, named_groups, parameter_roles

NOT_SETTINGS = {"type", "preset", "library"}
"""Fields of a section that are no arguments of an optimizer."""
GUARDED = {"skip_nonfinite": False}
"""The learner skips steps with a non-finite gradient norm before it asks the optimizer: another pass over the gradient
would find nothing."""


def keeps_master_copies(config: OptimizerConfig) -> bool:
    """Whether low-precision weights have float32 copies, or the optimizer makes do without."""
    return getattr(config, "param_precision", "native") == "native"


def build_optimizer(
    config: OptimizerConfig, model: nn.Module, named_parameters: Mapping[str, nn.Parameter], seed: int = 0,
    *, is_guarded: bool = True, overrides: Overrides | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over `named_parameters`: the trainable parameters of `model`, or master copies under their names.

    Vectors (norms, biases) are not decayed. `is_guarded`: no step is asked for where a gradient is not finite; if not,
    our optimizers look for themselves. `overrides`: see `named_groups`.
    Raises ModuleNotFoundError where `adamw_8bit` finds no library for it.
    """
    method = "adamw" if config.type == "adamw_8bit" else config.type
    groups = named_groups(
        named_parameters, parameter_roles(model, optimizer=method), weight_decay=config.weight_decay,
        overrides=overrides,
    )
    settings: dict[str, Any] = config.model_dump(exclude=NOT_SETTINGS | {"weight_decay"})
    guarded = GUARDED if is_guarded else {}
    match config:
        case AdamWConfig():
            return torch.optim.AdamW(_plain(groups), **settings, fused=True)
        case AdamW8bitConfig():
            return _adamw_8bit(config)(_plain(groups), **settings)
        case AdaBeliefConfig():
            return AdaBelief(groups, **settings, **guarded, seed=seed)
        case FrugalConfig():
            return Frugal(groups, **settings, **guarded, seed=seed)
        case AuONConfig():
            return AuON(groups, **settings, **guarded, seed=seed)
        case MuonConfig():
            return MatrixMomentum(groups, **settings)
    raise TypeError(f"no optimizer is built for {type(config).__name__}")


def _plain(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without roles, which torch's optimizers would carry along."""
    return [{name: value for name, value in group.items() if name != "role"} for group in groups]


def _adamw_8bit(config: AdamW8bitConfig) -> Any:
    wanted = libraries_of(config)
    found = [name for name in wanted if importlib.util.find_spec(name) is not None]
    if not found:
        raise ModuleNotFoundError(
            f"optimizer.type adamw_8bit needs {' or '.join(wanted)}: pip install torchao, or use type: frugal with "
            "state_dtype: 8bit, which needs less memory"
        )
    if found[0] == "torchao":
        from torchao.optim import AdamW8bit
    else:
        from bitsandbytes.optim import AdamW8bit
    return AdamW8bit

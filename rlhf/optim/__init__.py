"""Optimizers with less state than AdamW, for full fine-tuning: AdaBelief, Frugal, AuON; see docs/optimizers.md."""

from rlhf.optim.adabelief import AdaBelief
from rlhf.optim.auon import AuON
from rlhf.optim.frugal import Frugal
from rlhf.optim.parameter_groups import build_param_groups

__all__ = ["AdaBelief", "AuON", "Frugal", "build_param_groups"]

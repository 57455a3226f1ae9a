"""Optimizers for `transformers.Trainer`, which makes one from a pair of factory and settings:

    Trainer(model, args, ..., optimizer_cls_and_kwargs=(FrugalFactory, {"lr": 1e-4, "density": 0.25}))

The Trainer's own grouping of parameters knows no roles, so a factory takes the model and groups its parameters with
`build_param_groups`. Learning rate and weight decay are those of the settings, not those of TrainingArguments.
"""

from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from rlhf.optim.adabelief import AdaBelief
from rlhf.optim.auon import AuON
from rlhf.optim.frugal import Frugal
from rlhf.optim.parameter_groups import Method, build_param_groups

GROUPING = ("weight_decay", "min_split_numel", "min_split_dim", "overrides")
"""Settings that `build_param_groups` takes; all others are the optimizer's."""


class OptimizerFactory:
    """Made without arguments, called with a model and settings: how the Trainer knows a factory from an optimizer."""

    optimizer: ClassVar[type[Optimizer]]
    method: ClassVar[Method]

    def __call__(self, model: nn.Module, **settings: Any) -> Optimizer:
        """The optimizer over the model's trainable parameters.

        Raises TypeError for settings that it does not have, and ValueError as it and `build_param_groups` do.
        """
        grouping = {name: settings.pop(name) for name in GROUPING if name in settings}
        return self.optimizer(build_param_groups(model, optimizer=self.method, **grouping), **settings)


class AdaBeliefFactory(OptimizerFactory):
    """Makes `AdaBelief`."""

    optimizer, method = AdaBelief, "adabelief"


class FrugalFactory(OptimizerFactory):
    """Makes `Frugal`."""

    optimizer, method = Frugal, "frugal"


class AuONFactory(OptimizerFactory):
    """Makes `AuON`."""

    optimizer, method = AuON, "auon"

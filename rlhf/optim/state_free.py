"""Rules without state, for the part of a model that FRUGAL keeps no moments of (arXiv 2411.07837, section 3)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.optim.rules import Moment, Numbers, Rule, Tensors


class SignRule:
    """signSGD: p <- p decay - lr sign(g). Gradients of at most `threshold` count as zero."""

    def moments(self, group: Mapping[str, Any]) -> tuple[Moment, ...]:
        return ()

    def numbers(self, group: Mapping[str, Any], lr: float, step: Any) -> Numbers:
        return {"lr": lr, "threshold": 0.0}

    def foreach(self, params: Tensors, grads: Tensors, moments: Sequence[Tensors], numbers: Numbers) -> None:
        if numbers["threshold"]:
            grads = [torch.where(grad.abs() > numbers["threshold"], grad, 0) for grad in grads]
        torch._foreach_mul_(params, numbers["decay"])
        torch._foreach_add_(params, torch._foreach_sign(grads), alpha=-numbers["lr"])

    def update(self, param: Tensor, grad: Tensor, moments: Tensors, numbers: Numbers) -> tuple[Tensor, ...]:
        direction = torch.where(grad.abs() > numbers["threshold"], torch.sign(grad), 0)
        return (param * numbers["decay"] - direction * numbers["lr"],)


class SGDRule:
    """Plain SGD: p <- p decay - lr g."""

    def moments(self, group: Mapping[str, Any]) -> tuple[Moment, ...]:
        return ()

    def numbers(self, group: Mapping[str, Any], lr: float, step: Any) -> Numbers:
        return {"lr": lr}

    def foreach(self, params: Tensors, grads: Tensors, moments: Sequence[Tensors], numbers: Numbers) -> None:
        torch._foreach_mul_(params, numbers["decay"])
        torch._foreach_add_(params, grads, alpha=-numbers["lr"])

    def update(self, param: Tensor, grad: Tensor, moments: Tensors, numbers: Numbers) -> tuple[Tensor, ...]:
        return (param * numbers["decay"] - grad * numbers["lr"],)


class DecayRule:
    """Weight decay alone."""

    def moments(self, group: Mapping[str, Any]) -> tuple[Moment, ...]:
        return ()

    def numbers(self, group: Mapping[str, Any], lr: float, step: Any) -> Numbers:
        return {}

    def foreach(self, params: Tensors, grads: Tensors, moments: Sequence[Tensors], numbers: Numbers) -> None:
        torch._foreach_mul_(params, numbers["decay"])

    def update(self, param: Tensor, grad: Tensor, moments: Tensors, numbers: Numbers) -> tuple[Tensor, ...]:
        return (param * numbers["decay"],)


STATE_FREE_RULES: dict[str, Rule] = {"sign": SignRule(), "sgd": SGDRule(), "none": DecayRule()}

"""Elementwise update rules: AdamW, AdaBelief, Lion. Each is written twice, for lists of tensors (`foreach`) and for one
tensor as an expression (`update`) that torch.compile fuses; a test holds the two together.

A rule knows flat float tensors and numbers that depend on the step; where the tensors live, how they are stored and
which part of a parameter they are is not its business.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Numbers = Mapping[str, Any]
"""A rule's numbers at one step: floats, or float64 tensors with one for each column of the elements. All that is small
is a number of its own: compiled kernels have them in float32, where 1 - 0.999 is 1e-5 off."""
Tensors = Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Moment:
    """A state tensor of the parameter's shape; `signed` is False where its values are never negative."""

    name: str
    signed: bool


EXP_AVG, EXP_AVG_SQ = Moment("exp_avg", signed=True), Moment("exp_avg_sq", signed=False)
EXP_AVG_VAR, MAX_EXP_AVG_VAR = Moment("exp_avg_var", signed=False), Moment("max_exp_avg_var", signed=False)


class Rule(Protocol):
    """One elementwise update."""

    def moments(self, group: Mapping[str, Any]) -> tuple[Moment, ...]:
        """The state that the rule keeps."""

    def numbers(self, group: Mapping[str, Any], lr: float, step: Any) -> Numbers:
        """What depends on the group, the learning rate and the step (1 is the first; a tensor where columns differ).
        """

    def foreach(self, params: Tensors, grads: Tensors, moments: Sequence[Tensors], numbers: Numbers) -> None:
        """Update `params` and `moments` (one list a moment) in place."""

    def update(self, param: Tensor, grad: Tensor, moments: Tensors, numbers: Numbers) -> tuple[Tensor, ...]:
        """New parameter and moments."""


class AdamWRule:
    """AdamW (arXiv 1711.05101, algorithm 2): p <- p (1 - lr wd) - lr m_hat / (sqrt(v_hat) + eps), in torch's order of
    operations."""

    def moments(self, group: Mapping[str, Any]) -> tuple[Moment, ...]:
        return EXP_AVG, EXP_AVG_SQ

    def numbers(self, group: Mapping[str, Any], lr: float, step: Any) -> Numbers:
        beta1, beta2 = group["betas"]
        return {
            "decay": 1 - lr * group["weight_decay"],
            "weight1": 1 - beta1,
            "beta2": beta2,
            "weight2": 1 - beta2,
            "step_size": lr / (1 - beta1**step),
            "correction": _sqrt(1 - beta2**step),
            "eps": group["eps"],
        }

    def foreach(self, params: Tensors, grads: Tensors, moments: Sequence[Tensors], numbers: Numbers) -> None:
        first, second = moments
        torch._foreach_mul_(params, numbers["decay"])
        torch._foreach_lerp_(first, grads, numbers["weight1"])
        torch._foreach_mul_(second, numbers["beta2"])
        torch._foreach_addcmul_(second, grads, grads, numbers["weight2"])
        root = torch._foreach_sqrt(second)
        torch._foreach_div_(root, numbers["correction"])
        torch._foreach_add_(root, numbers["eps"])
        torch._foreach_addcdiv_(params, first, root, -numbers["step_size"])

    def update(self, param: Tensor, grad: Tensor, moments: Tensors, numbers: Numbers) -> tuple[Tensor, ...]:
        first, second = moments
        first = first + (grad - first) * numbers["weight1"]
        second = second * numbers["beta2"] + grad * grad * numbers["weight2"]
        root = second.sqrt() / numbers["correction"] + numbers["eps"]
        return param * numbers["decay"] - first / root * numbers["step_size"], first, second


class AdaBeliefRule:
    """AdaBelief (arXiv 2010.07468, algorithm 2) as in adabelief-pytorch 0.2.1: the second moment is of the gradient's
    distance to its running mean.

    Group keys: `eps_mode` "accumulate" adds eps to the stored moment at every step, so that its floor is eps / (1 -
    beta2); "additive" adds it to the corrected moment at use. `weight_decouple` False adds the decay to the gradient;
    `fixed_decay` does not multiply it by the learning rate. `rectify` is RAdam's warm-up (arXiv 1908.03265), with steps
    of plain momentum (`degenerated_to_sgd`) or none while the variance is intractable. `amsgrad` keeps the largest
    second moment, without effect on rectified steps.
    """

    def moments(self, group: Mapping[str, Any]) -> tuple[Moment, ...]:
        return (EXP_AVG, EXP_AVG_VAR, MAX_EXP_AVG_VAR) if group["amsgrad"] else (EXP_AVG, EXP_AVG_VAR)

    def numbers(self, group: Mapping[str, Any], lr: float, step: Any) -> Numbers:
        beta1, beta2 = group["betas"]
        weight_decay, eps = group["weight_decay"], group["eps"]
        is_accumulated = group["eps_mode"] == "accumulate"
        numbers = {
            "decay": 1 - (weight_decay if group["fixed_decay"] else lr * weight_decay) * group["weight_decouple"],
            "coupled_decay": 0.0 if group["weight_decouple"] else weight_decay,
            "weight1": 1 - beta1,
            "beta2": beta2,
            "weight2": 1 - beta2,
            "kind": "adaptive",
            "step_size": lr / (1 - beta1**step),
            "correction": _sqrt(1 - beta2**step),
            "scale": 1 / (1 - beta2**step),
            "stored_eps": eps if is_accumulated else 0.0,
            "eps": eps if is_accumulated else 0.0,
            "eps_inside": 0.0 if is_accumulated else eps,
        }
        return numbers | self._rectified(group, step) if group["rectify"] else numbers

    def _rectified(self, group: Mapping[str, Any], step: Any) -> dict[str, Any]:
        if isinstance(step, Tensor):
            raise ValueError("rectify needs one step count for a whole tensor: set rectify to False")
        beta2 = group["betas"][1]
        longest = 2 / (1 - beta2) - 1
        power = beta2**step
        length = longest - 2 * step * power / (1 - power)
        if length >= 5:
            ratio = (length - 4) / (longest - 4) * (length - 2) / length * longest / (longest - 2)
            # the moment is used as stored: its correction is part of the rectification
            return {"kind": "rectified", "correction": 1 / math.sqrt((1 - power) * ratio)}
        return {"kind": "momentum" if group["degenerated_to_sgd"] else "none"}

    def foreach(self, params: Tensors, grads: Tensors, moments: Sequence[Tensors], numbers: Numbers) -> None:
        scratch = self.average(params, grads, moments, numbers)
        if numbers["decay"] != 1:
            torch._foreach_mul_(params, numbers["decay"])
        self.descend(params, moments, scratch, numbers)

    def average(self, params: Tensors, grads: Tensors, moments: Sequence[Tensors], numbers: Numbers) -> Tensors:
        """Update the moments; returns tensors of their shapes for `descend` to use."""
        first, second = moments[:2]
        if numbers["coupled_decay"]:
            grads = torch._foreach_add(grads, params, alpha=numbers["coupled_decay"])
        torch._foreach_lerp_(first, grads, numbers["weight1"])
        scratch = torch._foreach_sub(grads, first)
        torch._foreach_mul_(second, numbers["beta2"])
        torch._foreach_addcmul_(second, scratch, scratch, numbers["weight2"])
        if numbers["stored_eps"]:
            torch._foreach_add_(second, numbers["stored_eps"])
        if len(moments) == 3:
            torch._foreach_maximum_(moments[2], second)
        return scratch

    def descend(self, params: Tensors, moments: Sequence[Tensors], scratch: Tensors, numbers: Numbers) -> None:
        """Add the step, without decay, to `params`; overwrites `scratch`."""
        first, second = moments[:2]
        if numbers["kind"] == "none":
            return
        if numbers["kind"] == "momentum":
            torch._foreach_add_(params, first, alpha=-numbers["step_size"])
            return
        used = moments[2] if len(moments) == 3 and numbers["kind"] == "adaptive" else second
        torch._foreach_copy_(scratch, used)
        if numbers["eps_inside"]:
            torch._foreach_div_(scratch, numbers["correction"] ** 2)
            torch._foreach_add_(scratch, numbers["eps_inside"])
            torch._foreach_sqrt_(scratch)
            torch._foreach_addcdiv_(params, first, scratch, -numbers["step_size"])
            return
        torch._foreach_sqrt_(scratch)
        if numbers["kind"] == "adaptive":
            torch._foreach_div_(scratch, numbers["correction"])
            torch._foreach_add_(scratch, numbers["eps"])
            torch._foreach_addcdiv_(params, first, scratch, -numbers["step_size"])
        else:
            torch._foreach_add_(scratch, numbers["eps"])
            torch._foreach_addcdiv_(params, first, scratch, -numbers["step_size"] / numbers["correction"])

    def update(self, param: Tensor, grad: Tensor, moments: Tensors, numbers: Numbers) -> tuple[Tensor, ...]:
        first, second = moments[:2]
        grad = grad + param * numbers["coupled_decay"]
        param = param * numbers["decay"]
        first = first + (grad - first) * numbers["weight1"]
        residual = grad - first
        second = second * numbers["beta2"] + residual * residual * numbers["weight2"] + numbers["stored_eps"]
        new = (first, second, *(torch.maximum(old, second) for old in moments[2:]))
        return param if numbers["kind"] == "none" else param - self.step(new, numbers), *new

    def step(self, moments: Tensors, numbers: Numbers) -> Tensor:
        """What the moments take from a parameter, without decay."""
        first, second, used = moments[0], moments[1], moments[-1]
        if numbers["kind"] == "momentum":
            return first * numbers["step_size"]
        if numbers["kind"] == "rectified":
            root = (second.sqrt() + numbers["eps"]) * numbers["correction"]
        else:
            # a product: a division more would show in a kernel's time
            root = (used * numbers["scale"] + numbers["eps_inside"]).sqrt() + numbers["eps"]
        return first / root * numbers["step_size"]


class LionRule:
    """Lion (arXiv 2302.06675, algorithm 2): the sign of an interpolation of gradient and momentum."""

    def moments(self, group: Mapping[str, Any]) -> tuple[Moment, ...]:
        return (EXP_AVG,)

    def numbers(self, group: Mapping[str, Any], lr: float, step: Any) -> Numbers:
        beta1, beta2 = group["betas"]
        return {"decay": 1 - lr * group["weight_decay"], "weight1": 1 - beta1, "weight2": 1 - beta2, "lr": lr}

    def foreach(self, params: Tensors, grads: Tensors, moments: Sequence[Tensors], numbers: Numbers) -> None:
        (first,) = moments
        torch._foreach_mul_(params, numbers["decay"])
        direction = torch._foreach_lerp(first, grads, numbers["weight1"])
        torch._foreach_sign_(direction)
        torch._foreach_add_(params, direction, alpha=-numbers["lr"])
        torch._foreach_lerp_(first, grads, numbers["weight2"])

    def update(self, param: Tensor, grad: Tensor, moments: Tensors, numbers: Numbers) -> tuple[Tensor, ...]:
        (first,) = moments
        direction = torch.sign(first + (grad - first) * numbers["weight1"])
        param = param * numbers["decay"] - direction * numbers["lr"]
        return param, first + (grad - first) * numbers["weight2"]


RULES: dict[str, Rule] = {"adamw": AdamWRule(), "adabelief": AdaBeliefRule(), "lion": LionRule()}


def _sqrt(value: Any) -> Any:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)

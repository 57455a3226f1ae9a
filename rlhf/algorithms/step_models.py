"""How an optimizer step becomes a change of the LM head: what one token's gradient, or a whole gradient, would do.

Everything is written for ascent on the objective and for a learning rate of 1: every model's step is the learning rate
times something that does not depend on it. Optimizers hold moments of the loss's gradient, which is minus the
objective's; the models negate them.

A token with input h (scale and temperature applied) and gradient r_k of its objective by logit k has the gradient
r_k h by row k of the weight. `rows` turns the gradient of any rows, (b, D) or (n, K, D), into their step. Where the
step is linear in the gradient, `block` and `coefficient` give the parts of which `StepBlock` speaks.

Shapes: V vocabulary, D hidden size (one more with a bias); n tokens, b rows, K ids.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf.algorithms.moment_stream import StepBlock
from rlhf.algorithms.output_head import OutputHead, Rows, check_length

StepModelName = Literal["sgd", "adam_frozen", "adam_row"]


@dataclass(frozen=True, slots=True)
class SgdStep:
    """dW = gradient - decay * W."""

    weight: Rows
    weight_decay: float

    def coefficient(self, slope_n: Tensor, input_square_n: Tensor) -> Tensor:
        """c of `StepBlock`, from the objective's slope by log p and |h|^2."""
        return slope_n * input_square_n

    def block(self, columns: slice) -> StepBlock:
        return StepBlock(fixed_bD=_decay(self.weight, self.weight_decay, columns))

    def rows(self, gradient: Tensor, index: slice | Tensor) -> Tensor:
        decay = _decay(self.weight, self.weight_decay, index)
        return gradient if decay is None else gradient + decay


@dataclass(frozen=True, slots=True)
class FrozenAdamStep:
    """Adam with the second moment as it stands: P = 1 / (sqrt(v / (1 - beta2^step)) + eps) and

    dW = P o (beta1 m + (1 - beta1) gradient) / (1 - beta1^(step + 1)) - decay * W, or without momentum
    dW = P o gradient - decay * W.
    """

    weight: Rows
    exp_avg: Rows
    exp_avg_sq: Rows
    step: int
    betas: tuple[float, float]
    eps: float
    momentum: bool
    weight_decay: float

    def coefficient(self, slope_n: Tensor, input_square_n: Tensor) -> Tensor:
        """c of `StepBlock`, from the objective's slope by log p."""
        return slope_n * self._own_share()

    def block(self, columns: slice) -> StepBlock:
        preconditioner_bD = self._preconditioner(columns)
        decay = _decay(self.weight, self.weight_decay, columns)
        if not self.momentum:
            return StepBlock(fixed_bD=decay, scale_bD=preconditioner_bD)
        fixed_bD = self.exp_avg[columns] * preconditioner_bD
        fixed_bD.mul_(-self._momentum_share())
        return StepBlock(fixed_bD=fixed_bD if decay is None else fixed_bD.add_(decay), scale_bD=preconditioner_bD)

    def rows(self, gradient: Tensor, index: slice | Tensor) -> Tensor:
        change = gradient * self._own_share()
        if self.momentum:
            change = change - self.exp_avg[index] * self._momentum_share()
        change = change * self._preconditioner(index)
        decay = _decay(self.weight, self.weight_decay, index)
        return change if decay is None else change.add_(decay)

    def _preconditioner(self, index: slice | Tensor) -> Tensor:
        corrected = self.exp_avg_sq[index] / (1 - self.betas[1] ** self.step)
        return corrected.sqrt_().add_(self.eps).reciprocal_()

    def _own_share(self) -> float:
        beta = self.betas[0]
        return (1 - beta) / (1 - beta ** (self.step + 1)) if self.momentum else 1.0

    def _momentum_share(self) -> float:
        beta = self.betas[0]
        return beta / (1 - beta ** (self.step + 1))


@dataclass(frozen=True, slots=True)
class RowAdamStep:
    """The whole Adam step, the gradient's square in the second moment too (the released CAPO code's model):

    m' = beta1 m + (1 - beta1) gradient, v' = beta2 v + (1 - beta2) gradient^2, both corrected by 1 - beta^(step + 1),
    dW = m' / (sqrt(v') + eps) - decay * W; without momentum the gradient stands for m'.
    """

    weight: Rows
    exp_avg: Rows
    exp_avg_sq: Rows
    step: int
    betas: tuple[float, float]
    eps: float
    momentum: bool
    weight_decay: float

    def rows(self, gradient: Tensor, index: slice | Tensor) -> Tensor:
        beta1, beta2 = self.betas
        square = self.exp_avg_sq[index] * (beta2 / (1 - beta2 ** (self.step + 1)))
        square = torch.addcmul(square, gradient, gradient, value=(1 - beta2) / (1 - beta2 ** (self.step + 1)))
        change = gradient
        if self.momentum:
            change = (self.exp_avg[index] * -beta1).add(gradient, alpha=1 - beta1).div_(1 - beta1 ** (self.step + 1))
        change = change / square.sqrt_().add_(self.eps)
        decay = _decay(self.weight, self.weight_decay, index)
        return change if decay is None else change.add_(decay)


LinearStep = SgdStep | FrozenAdamStep
StepModel = LinearStep | RowAdamStep


def step_model(
    name: StepModelName,
    head: OutputHead,
    *,
    exp_avg_VD: Tensor | None = None,
    exp_avg_sq_VD: Tensor | None = None,
    bias_exp_avg_V: Tensor | None = None,
    bias_exp_avg_sq_V: Tensor | None = None,
    step: int = 0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    momentum: bool = True,
    weight_decay: float = 0.0,
) -> StepModel:
    """The model of that name over the optimizer's state after `step` steps.

    Before the first step there is no second moment to divide by: `adam_frozen` is then `sgd`, and so is `adam_row`
    where no moments are given.

    Raises ValueError for an unknown name, for moments that are missing after the first step or of another shape than
    the weight, and for moments of a bias that are missing.
    """
    if name not in ("sgd", "adam_frozen", "adam_row"):
        raise ValueError(f"unknown step model {name!r}: choose sgd, adam_frozen or adam_row")
    if step < 0:
        raise ValueError(f"step counts the optimizer steps already taken, got {step}")
    weight = head.weight
    if name == "sgd" or (step == 0 and (name == "adam_frozen" or exp_avg_VD is None)):
        return SgdStep(weight, weight_decay)
    if exp_avg_VD is None or exp_avg_sq_VD is None:
        raise ValueError(
            f"{name} at step {step} needs the optimizer's moments of the LM head: give exp_avg_VD and exp_avg_sq_VD, "
            "or use step_model='sgd'"
        )
    for label, moment in (("exp_avg_VD", exp_avg_VD), ("exp_avg_sq_VD", exp_avg_sq_VD)):
        if tuple(moment.shape) != tuple(weight.matrix_VD.shape):
            raise ValueError(
                f"{label} has shape {tuple(moment.shape)}, but the LM head weight {tuple(weight.matrix_VD.shape)}"
            )
    check_length(head.vocabulary, bias_exp_avg_V=bias_exp_avg_V, bias_exp_avg_sq_V=bias_exp_avg_sq_V)
    if weight.column_V is None:
        bias_exp_avg_V = bias_exp_avg_sq_V = None
    elif bias_exp_avg_V is None or bias_exp_avg_sq_V is None:
        raise ValueError(
            f"{name} at step {step} needs the moments of the LM head's bias too: give bias_exp_avg_V and "
            "bias_exp_avg_sq_V, or use step_model='sgd'"
        )
    model = FrozenAdamStep if name == "adam_frozen" else RowAdamStep
    return model(
        weight,
        Rows(exp_avg_VD, bias_exp_avg_V, weight.dtype),
        Rows(exp_avg_sq_VD, bias_exp_avg_sq_V, weight.dtype),
        step,
        betas,
        eps,
        momentum,
        weight_decay,
    )


def _decay(weight: Rows, weight_decay: float, index: slice | Tensor) -> Tensor | None:
    """-decay * W of some rows, or None; a bias does not decay."""
    if weight_decay == 0:
        return None
    rows = weight.matrix_VD[index].to(weight.dtype) * -weight_decay
    return rows if weight.column_V is None else torch.cat([rows, torch.zeros_like(rows[..., :1])], -1)

"""The streamed LM head: log-probs, entropies and their gradients without a tokens x vocabulary tensor.

Tokens are visited in blocks. One visit computes a block's logits, its softmax statistics and, where gradients are
wanted, the gradient of the logits in the same memory, from which the gradients of hidden states and weight follow at
once.

With x_v the logits of one token (after scale, softcap and temperature), p = softmax(x), H = -sum_v p_v log p_v and
target t:
    d log p_t / d x_v = [v = t] - p_v
    d H / d x_v       = -p_v (log p_v + H)
so the gradient of any loss is known from two numbers a token, dloss/dlogp and dloss/dentropy. Where the loss is a sum
of terms that each depend on one token (clipping, CISPO, KL estimates, importance weights, entropy bonus), these are
known in the same visit, and the head is passed once (`policy_head`). Otherwise `token_statistics` visits again in the
backward pass.

Shapes: N target tokens, D hidden size, V vocabulary, n tokens of one block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from rlhf.models.head_block import Block, Projection, block_rows
from rlhf.models.precision import accumulation_dtype

Objective = Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor]
Coefficients = Callable[[torch.Tensor, torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class HeadSettings:
    """How hidden states become log-probs.

    Logits are multiplied by `logit_scale`, capped to softcap * tanh(logits / softcap), and divided by `temperature`.

    `block_bytes`: memory for the logits of one block; None: 48 MiB on CPU and 256 MiB on CUDA, at least 128 tokens.
    """

    temperature: float = 1.0
    logit_softcap: float | None = None
    logit_scale: float = 1.0
    block_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0 for log-probs to exist, got {self.temperature}")
        if self.logit_softcap is not None and self.logit_softcap <= 0:
            raise ValueError(f"logit_softcap must be above 0, got {self.logit_softcap}: use None for no softcap")
        if self.block_bytes is not None and self.block_bytes <= 0:
            raise ValueError(f"block_bytes must be above 0, got {self.block_bytes}")


class TokenStatistics(NamedTuple):
    """Per target token, float32 (float64 for float64 inputs).

    log p_target, entropy in nats, and where asked for the collision probability sum_v p_v^2 and max_v p_v (both
    without gradient).
    """

    logp_N: torch.Tensor
    entropy_N: torch.Tensor
    collision_N: torch.Tensor | None = None
    max_prob_N: torch.Tensor | None = None


class HeadOutput(NamedTuple):
    """The differentiable loss (a scalar), and detached statistics as in `TokenStatistics`."""

    loss: torch.Tensor
    logp_N: torch.Tensor
    entropy_N: torch.Tensor
    collision_N: torch.Tensor | None = None
    max_prob_N: torch.Tensor | None = None


def token_statistics(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    target_N: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    settings: HeadSettings | None = None,
    with_extras: bool = False,
) -> TokenStatistics:
    """Log-prob and entropy of each target, differentiable in hidden states, weight and bias; blocks are computed again
    in the backward pass. `with_extras` adds `collision_N` and `max_prob_N` from the same visit.

    Raises ValueError when shapes do not fit together.
    """
    settings = settings or HeadSettings()
    hidden_ND, weight_VD, bias_V = _prepare(hidden_ND, weight_VD, target_N, bias_V)
    logp_N, entropy_N, *extras = _TwoPass.apply(hidden_ND, weight_VD, bias_V, target_N, settings, with_extras)
    return TokenStatistics(logp_N, entropy_N, *extras)


def policy_head(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    target_N: torch.Tensor,
    objective: Objective,
    *,
    bias_V: torch.Tensor | None = None,
    settings: HeadSettings | None = None,
    with_extras: bool = False,
) -> HeadOutput:
    """The loss sum_i objective(logp_i, entropy_i), its gradients computed in the same visit as the log-probs.

    `objective(logp_n, entropy_n, rows)` returns the already weighted loss of each token of `rows` (a slice of the N
    targets), shape (n,). It must be elementwise: the loss of a token may depend on that token's log-prob and entropy
    and on constants. Gradients flow to hidden states, weight and bias only, not to tensors that `objective` closes
    over. Inputs that need no gradient cost none; under `torch.no_grad` only statistics and the loss's value are
    computed. Raises ValueError when shapes do not fit together or `objective` returns another shape.
    """
    settings = settings or HeadSettings()
    hidden_ND, weight_VD, bias_V = _prepare(hidden_ND, weight_VD, target_N, bias_V)
    # inside a Function's forward gradients always look disabled, so it is told here
    is_recording = torch.is_grad_enabled()
    return HeadOutput(
        *_OnePass.apply(hidden_ND, weight_VD, bias_V, target_N, objective, settings, with_extras, is_recording)
    )


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        target_N: torch.Tensor,
        objective: Objective,
        settings: HeadSettings,
        with_extras: bool,
        is_recording: bool,
    ) -> tuple[torch.Tensor | None, ...]:
        needs = ctx.needs_input_grad[:3] if is_recording else (False, False, False)
        losses: list[torch.Tensor] = []

        def coefficients(
            logp_n: torch.Tensor, entropy_n: torch.Tensor, rows: slice
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            loss, by_logp_n, by_entropy_n = _differentiate(objective, logp_n, entropy_n, rows, any(needs))
            losses.append(loss)
            return by_logp_n, by_entropy_n

        statistics, ctx.gradients = _visit(
            hidden_ND, weight_VD, bias_V, target_N, settings, coefficients, needs, with_extras
        )
        loss = torch.stack(losses).sum() if losses else statistics.logp_N.new_zeros(())
        ctx.mark_non_differentiable(*(tensor for tensor in statistics if tensor is not None))
        ctx.set_materialize_grads(False)
        return (loss, *statistics)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "the one-pass head was differentiated twice: its gradients are consumed by the first backward"
            )
        if loss_gradient is None:
            return (None,) * 8
        hidden, weight, bias = (None if g is None else g.mul_(loss_gradient.to(g.dtype)) for g in gradients)
        return hidden, weight, bias, None, None, None, None, None


class _TwoPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        target_N: torch.Tensor,
        settings: HeadSettings,
        with_extras: bool,
    ) -> tuple[torch.Tensor | None, ...]:
        statistics, _ = _visit(
            hidden_ND, weight_VD, bias_V, target_N, settings, None, (False, False, False), with_extras
        )
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, target_N)
        ctx.settings = settings
        ctx.mark_non_differentiable(*(tensor for tensor in statistics[2:] if tensor is not None))
        ctx.set_materialize_grads(False)
        return tuple(statistics)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_logp_N: torch.Tensor | None, by_entropy_N: torch.Tensor | None, *_: Any
    ) -> tuple[torch.Tensor | None, ...]:
        if by_logp_N is None and by_entropy_N is None:
            return (None,) * 6
        hidden_ND, weight_VD, bias_V, target_N = ctx.saved_tensors

        def coefficients(
            logp_n: torch.Tensor, entropy_n: torch.Tensor, rows: slice
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            by_logp_n = torch.zeros_like(logp_n) if by_logp_N is None else by_logp_N[rows]
            return by_logp_n, None if by_entropy_N is None else by_entropy_N[rows]

        _, gradients = _visit(
            hidden_ND, weight_VD, bias_V, target_N, ctx.settings, coefficients, ctx.needs_input_grad[:3], False
        )
        return (*gradients, None, None, None)


def _visit(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    target_N: torch.Tensor,
    settings: HeadSettings,
    coefficients: Coefficients | None,
    needs: tuple[bool, ...],
    with_extras: bool,
) -> tuple[TokenStatistics, tuple[torch.Tensor | None, ...]]:
    """All blocks once: statistics, and the gradients of (hidden, weight, bias) that `needs` asks for.

    `coefficients(logp_n, entropy_n, rows)` gives (dloss/dlogp, dloss/dentropy or None) of a block.
    """
    count = hidden_ND.shape[0]
    dtype = accumulation_dtype(hidden_ND.dtype)
    kept = [hidden_ND.new_empty(count, dtype=dtype) for _ in range(4 if with_extras else 2)]
    projection = Projection(weight_VD, bias_V, needs)
    by_hidden_ND = torch.zeros_like(hidden_ND) if needs[0] else None
    rows_at_once = block_rows(count, projection, settings.block_bytes)
    block = Block(projection, rows_at_once, settings, dtype)
    for start in range(0, count, rows_at_once):
        rows = slice(start, min(start + rows_at_once, count))
        hidden_nD, target_n = projection.cast(hidden_ND[rows]), target_N[rows]
        values = block.visit(hidden_nD, target_n, is_kept=any(needs), with_extras=with_extras)
        for tensor, value in zip(kept, values, strict=True):
            tensor[rows] = value
        if coefficients is None:
            continue
        by_logp_n, by_entropy_n = coefficients(values[0], values[1], rows)
        if any(needs):
            by_logits_nV = block.differentiate(target_n, by_logp_n, by_entropy_n)
            if by_hidden_ND is not None:
                by_hidden_ND[rows] = projection.hidden_gradient(by_logits_nV)
            projection.accumulate(by_logits_nV, hidden_nD)
    return TokenStatistics(*kept), (by_hidden_ND, *projection.gradients())


def _differentiate(
    objective: Objective, logp_n: torch.Tensor, entropy_n: torch.Tensor, rows: slice, is_needed: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The objective's sum over a block, and its derivatives by log-prob and (None where it ignores it) entropy."""
    with torch.enable_grad():
        inputs = (logp_n.clone().requires_grad_(is_needed), entropy_n.clone().requires_grad_(is_needed))
        loss_n = objective(*inputs, rows)
        if loss_n.shape != logp_n.shape:
            raise ValueError(
                f"the objective returned shape {tuple(loss_n.shape)} for {logp_n.shape[0]} tokens: it must return "
                "one loss a token; for losses over whole sequences use token_statistics (elementwise=False)"
            )
        loss = loss_n.sum().to(logp_n.dtype)
        by_logp_n, by_entropy_n = None, None
        if is_needed and loss.requires_grad:
            by_logp_n, by_entropy_n = torch.autograd.grad(loss, inputs, allow_unused=True)
    return loss.detach(), torch.zeros_like(logp_n) if by_logp_n is None else by_logp_n, by_entropy_n


def _prepare(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, target_N: torch.Tensor, bias_V: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Checks shapes, and brings the inputs to one precision: autocast's where it is on, else the weight's."""
    if hidden_ND.ndim != 2 or weight_VD.ndim != 2 or hidden_ND.shape[1] != weight_VD.shape[1]:
        raise ValueError(
            f"hidden states {tuple(hidden_ND.shape)} and LM head weight {tuple(weight_VD.shape)} "
            "must be (N, D) and (V, D)"
        )
    if target_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"{hidden_ND.shape[0]} hidden states but targets of shape {tuple(target_N.shape)}")
    if bias_V is not None and bias_V.shape != weight_VD.shape[:1]:
        raise ValueError(f"bias of shape {tuple(bias_V.shape)} for a vocabulary of {weight_VD.shape[0]}")
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
    return hidden_ND.to(dtype), weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)

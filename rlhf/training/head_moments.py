"""The optimizer's state of the LM head: what the next step of its weight will be made of."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf.optim.buffers import state_buffer
from rlhf.optim.layout import local_flat, shaped_like
from rlhf.training.collectives import gather_lists, sum_tensor
from rlhf.training.weights.fsdp2 import whole_tensor
from rlhf.training.weights.master import MasterWeights
from rlhf.training.weights.zero import ZeroWeights

if TYPE_CHECKING:
    from rlhf.training.learner import Learner

SECOND_MOMENTS = ("exp_avg_sq", "exp_avg_var")
"""Adam's and AdaBelief's: the step divides by the root of either."""
MOMENTS = {"exp_avg": True, **dict.fromkeys(SECOND_MOMENTS, False)}
"""By name: whether it has a sign."""


@dataclass(frozen=True, slots=True)
class HeadMoments:
    """Moments of the loss gradient of the head's weight, (V, D) float32, after `step` steps, and the group's settings.
    """

    exp_avg_VD: Tensor
    exp_avg_sq_VD: Tensor
    step: int
    betas: tuple[float, float]
    eps: float
    weight_decay: float


def head_moments(learner: "Learner") -> tuple[HeadMoments | None, str]:
    """The moments, or None and the reason: no step yet, a frozen head, or an optimizer that keeps none of its kind.

    Gathered where weights are sharded; collective then.
    """
    weights, head = learner.weights, learner.policy.causal_lm.get_output_embeddings().weight
    name = next((n for n, p in zip(weights.names, weights.parameters, strict=True) if p is head), None)
    if name is None:
        return None, "the LM head is not trained"
    shape = tuple(getattr(head, "ds_shape", head.shape))
    if isinstance(weights, MasterWeights):
        moments, step = _whole_moments(weights, name)
    else:
        moments, step = _moments_in_partitions(weights, name, shape)
    if not step:
        return None, "no step was made yet"
    second = next((name for name in SECOND_MOMENTS if name in moments), None)
    if second is None or "exp_avg" not in moments:
        return None, f"{type(learner.optimizer).__name__} keeps no moments of the LM head that CAPO knows"
    group = _group_of(learner.optimizer, name)
    return HeadMoments(
        moments["exp_avg"], moments[second], step, tuple(group["betas"]), group["eps"], group["weight_decay"]
    ), ""


def _whole_moments(weights: MasterWeights, name: str) -> tuple[dict[str, Tensor], int]:
    """Moments with the weight's shape by name, and the number of steps."""
    master = weights.masters[weights.names.index(name)]
    state, kind = weights.optimizer.state.get(master, {}), _group_of(weights.optimizer, name).get("state_dtype")
    numel = local_flat(master.detach()).numel()
    found = {}
    for moment, is_signed in MOMENTS.items():
        if moment in state and type(state[moment]).__module__.split(".")[0] == "torch":
            flat = state_buffer(state, moment, kind or "float32", is_signed).read(0, numel)
            found[moment] = whole_tensor(shaped_like(flat, master))
    return found, int(state.get("step", 0))


def _moments_in_partitions(weights: ZeroWeights, name: str, shape: tuple[int, ...]) -> tuple[dict[str, Tensor], int]:
    """The same where each rank has a stretch of them. Collective."""
    held = [
        (weights.optimizer.state.get(parameter, {}), flat, piece)
        for parameter, flat, layout in weights.buffers() for piece in layout.pieces if piece.name == name
    ]  # fmt: skip
    told = gather_lists([(int(state.get("step", 0)), *(m for m in MOMENTS if m in state)) for state, _, _ in held])
    found = {}
    for moment in MOMENTS:
        if not all(moment in names for _, *names in told):
            continue
        whole = torch.zeros(torch.Size(shape).numel(), device=weights.engine.device)
        for state, flat, piece in held:
            if state[moment].numel() == flat.numel():
                part = state[moment][piece.offset : piece.offset + piece.numel]
                whole[piece.start : piece.start + piece.numel] = part.to(whole.device)
        found[moment] = sum_tensor(whole).view(shape)
    return found, max((step for step, *_ in told), default=0)


def _group_of(optimizer: torch.optim.Optimizer, name: str) -> dict[str, Any]:
    return next(group for group in optimizer.param_groups if name in group.get("param_names", ()))

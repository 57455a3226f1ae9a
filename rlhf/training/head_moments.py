"""The optimizer's state of the LM head: what the next step of its weight will be made of."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from rlhf.optim.buffers import state_buffer
from rlhf.optim.layout import local_flat, shaped_like
from rlhf.training.fsdp2_weights import whole_tensor
from rlhf.training.master_weights import MasterWeights

if TYPE_CHECKING:
    from rlhf.training.learner import Learner

SECOND_MOMENTS = ("exp_avg_sq", "exp_avg_var")
"""Adam's and AdaBelief's: the step divides by the root of either."""


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

    Gathered where FSDP2 has them in shards; collective then.
    """
    weight = learner.policy.causal_lm.get_output_embeddings().weight
    places = [index for index, parameter in enumerate(learner.weights.parameters) if parameter is weight]
    if not places:
        return None, "the LM head is not trained"
    if not isinstance(learner.weights, MasterWeights):
        return None, "ZeRO keeps the moments of the LM head in flat partitions (FSDP2 has them)"
    master = learner.weights.masters[places[0]]
    state = learner.optimizer.state.get(master, {})
    if not state:
        return None, "no step was made yet"
    second = next((name for name in SECOND_MOMENTS if name in state), None)
    if second is None or "exp_avg" not in state or type(state[second]).__module__.split(".")[0] != "torch":
        return None, f"{type(learner.optimizer).__name__} keeps no moments of the LM head that CAPO knows"
    group = next(g for g in learner.optimizer.param_groups if any(p is master for p in g["params"]))
    numel = local_flat(master.detach()).numel()
    first_VD, second_VD = (
        whole_tensor(shaped_like(state_buffer(state, name, group.get("state_dtype", "float32"), signed).read(0, numel),
                                 master))
        for name, signed in (("exp_avg", True), (second, False))
    )
    return HeadMoments(
        first_VD, second_VD, int(state["step"]), tuple(group["betas"]), group["eps"], group["weight_decay"]
    ), ""

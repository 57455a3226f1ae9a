"""DeepSpeed ZeRO hands an optimizer flat partitions: this says which stretch of which tensor each of their elements is.

Call `attach_zero_layout(engine)` after `deepspeed.initialize`, for optimizers that look at tensors (Frugal, AuON,
AdaBelief with max_update_rms) or round by hash (bfloat16 state). Set `zero_allow_untested_optimizer` in DeepSpeed's
configuration. Needs DeepSpeed 0.16 or later; tested with 0.19.8.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor

from rlhf.optim.coordinate_split import WHOLE_TENSORS
from rlhf.optim.hashing import tensor_key
from rlhf.optim.layout import PIECES, Piece, Pieces


def attach_zero_layout(engine: Any) -> None:
    """Attach a layout to each flat partition of the engine's ZeRO optimizer (stages 1, 2, 3).

    Raises TypeError where the engine's optimizer is no ZeRO optimizer that keeps float32 partitions, and ValueError for
    elastic checkpoints, which cut state by the partition's padding.
    """
    zero = engine.optimizer
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    if getattr(engine, "zero_elastic_checkpoint", lambda: False)():
        raise ValueError("zero_optimization.elastic_checkpoint cuts state to the partition's length: set it to false")
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        _attach_stage_3(zero, names)
    elif hasattr(zero, "bit16_groups") or hasattr(zero, "bf16_groups"):
        _attach_stages_1_and_2(zero, names)
    else:
        raise TypeError(f"{type(zero).__name__} is no ZeRO optimizer with flat float32 partitions")


def _attach_stages_1_and_2(zero: Any, names: Mapping[int, str]) -> None:
    groups = zero.bit16_groups if hasattr(zero, "bit16_groups") else zero.bf16_groups
    for index, parameters in enumerate(groups):
        settings = zero.optimizer.param_groups[index]
        if settings.get("role") == "split" and settings["selector"] in WHOLE_TENSORS:
            raise ValueError(
                f"selector {settings['selector']} takes whole tensors, and stages 1 and 2 keep tensors side by side: "
                "all moments could fall on one rank. Use chunk or columns, or stage 3"
            )
        flat = zero.optimizer.param_groups[index]["params"][0]
        pieces, tensors = [], []
        for parameter in parameters:
            name, shape = names[id(parameter)], tuple(parameter.shape)
            tensors.append((name, shape))
            mapping = parameter._hp_mapping
            if mapping is not None:
                source, target = mapping.lp_fragment_address, mapping.hp_fragment_address
                pieces.append(Piece(name, tensor_key(name), shape, source.start, source.numel, target.start))
        groups_of_ranks = getattr(zero, "real_dp_process_group", None)
        group = groups_of_ranks[index] if groups_of_ranks is not None else zero.dp_process_group
        _attach(flat, pieces, tensors, group)


def _attach_stage_3(zero: Any, names: Mapping[int, str]) -> None:
    rank = dist.get_rank(group=zero.dp_process_group)
    # a group's tensors are spread over sub-groups: a choice among them looks at all
    tensors_of_group: dict[int, list[tuple[str, tuple[int, ...]]]] = {}
    for sub_group, parameters in enumerate(zero.fp16_groups):
        owner = zero.sub_group_to_group_id[sub_group]
        tensors_of_group.setdefault(owner, []).extend((names[id(p)], tuple(p.ds_shape)) for p in parameters)
    for sub_group, parameters in enumerate(zero.fp16_groups):
        pieces = []
        for parameter in parameters:
            _, offset, partition = zero.grad_position[zero.get_param_id(parameter)]
            start = rank * int(partition)
            # the last rank's partition is padded
            numel = max(0, min(int(partition), parameter.ds_numel - start))
            name = names[id(parameter)]
            if numel:
                shape = tuple(parameter.ds_shape)
                pieces.append(Piece(name, tensor_key(name), shape, start, numel, int(offset)))
        tensors = tensors_of_group[zero.sub_group_to_group_id[sub_group]]
        _attach(zero.fp32_partitioned_groups_flat[sub_group], pieces, tensors, zero.dp_process_group)


def _attach(flat: Tensor, pieces: list[Piece], tensors: list[tuple[str, tuple[int, ...]]], group: Any) -> None:
    ordered = tuple(sorted(pieces, key=lambda piece: piece.offset))
    setattr(flat, PIECES, Pieces(ordered, _sum_over(group), tuple(tensors)))


def _sum_over(group: Any) -> Callable[[Tensor], Tensor] | None:
    if dist.get_world_size(group=group) == 1:
        return None

    def reduce(values: Tensor) -> Tensor:
        dist.all_reduce(values, op=dist.ReduceOp.SUM, group=group)
        return values

    return reduce



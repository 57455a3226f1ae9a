"""DeepSpeed ZeRO hands an optimizer flat partitions: this says which stretch of which tensor each of their elements is.

Call `attach_zero_layout(engine)` after `deepspeed.initialize`, for optimizers that look at tensors (Frugal, AuON,
AdaBelief with max_update_rms) or round by hash (bfloat16 state). Set `zero_allow_untested_optimizer` in DeepSpeed's
configuration. Needs DeepSpeed 0.16 or later; tested with 0.19.8.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf.optim.coordinate_split import WHOLE_TENSORS
from rlhf.optim.hashing import tensor_key
from rlhf.optim.layout import Piece, Pieces, SumOverRanks, attach
from rlhf.optim.subspace_step import SUBSPACES


def attach_zero_layout(engine: Any) -> None:
    """Attach a layout to each flat partition of the engine's ZeRO optimizer (stages 1, 2, 3).

    Raises TypeError where the engine's optimizer is no ZeRO optimizer that keeps float32 partitions, and ValueError for
    settings that partitions cannot follow: elastic checkpoints (they cut state by the partition's padding), FRUGAL's
    whole tensors under stages 1 and 2, its subspaces and its state_mode other than reset, AuON's Newton-Schulz
    iterations, and bfloat16 master weights that are rounded to the nearest value.
    """
    zero = engine.optimizer
    is_stage_3 = hasattr(zero, "fp32_partitioned_groups_flat")
    if not is_stage_3 and not hasattr(zero, "bit16_groups") and not hasattr(zero, "bf16_groups"):
        raise TypeError(f"{type(zero).__name__} is no ZeRO optimizer with flat float32 partitions")
    if engine.zero_elastic_checkpoint():
        raise ValueError("zero_optimization.elastic_checkpoint cuts state to the partition's length: set it to false")
    for group in zero.optimizer.param_groups:
        _check_group(group, is_stage_3)
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    if is_stage_3:
        _attach_stage_3(zero, names)
    else:
        _attach_stages_1_and_2(zero, names)


def _check_group(group: Mapping[str, Any], is_stage_3: bool) -> None:
    selector, role = group.get("selector"), group.get("role")
    if role == "split" and selector in WHOLE_TENSORS and not is_stage_3:
        raise ValueError(
            f"selector {selector} takes whole tensors, and stages 1 and 2 keep tensors side by side: all moments could "
            "fall on one rank. Use chunk or columns, or stage 3"
        )
    if role == "split" and selector in SUBSPACES:
        raise ValueError(
            f"selector {selector} needs whole rows of a matrix, and ZeRO's partitions cut rows: use chunk or columns, "
            "or FSDP2"
        )
    if role == "split" and group["state_mode"] != "reset":
        raise ValueError(
            f"state_mode {group['state_mode']} carries moments tensor by tensor, and a ZeRO partition has one state "
            "for all of its tensors: use reset"
        )
    if role == "matrix" and group["ns_steps"]:
        raise ValueError(
            f"ns_steps = {group['ns_steps']} needs whole matrices, and ZeRO's partitions cut them: set ns_steps to 0, "
            "or use FSDP2 or DDP"
        )


def _attach_stages_1_and_2(zero: Any, names: Mapping[int, str]) -> None:
    groups = zero.bit16_groups if hasattr(zero, "bit16_groups") else zero.bf16_groups
    for index, (parameters, settings) in enumerate(zip(groups, zero.optimizer.param_groups, strict=True)):
        pieces, tensors = [], []
        for parameter in parameters:
            name, shape = names[id(parameter)], tuple(parameter.shape)
            tensors.append((name, shape))
            # None where no part of the tensor is on this rank
            mapping = parameter._hp_mapping
            if mapping is not None:
                source, target = mapping.lp_fragment_address, mapping.hp_fragment_address
                pieces.append(Piece(name, tensor_key(name), shape, source.start, source.numel, target.start))
        (flat,) = settings["params"]
        _attach(flat, settings, pieces, tensors, zero.real_dp_process_group[index])


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
            start = rank * partition
            # the last rank's partition is padded
            numel = max(0, min(partition, parameter.ds_numel - start))
            name = names[id(parameter)]
            if numel:
                pieces.append(Piece(name, tensor_key(name), tuple(parameter.ds_shape), start, numel, offset))
        owner = zero.sub_group_to_group_id[sub_group]
        flat, settings = zero.fp32_partitioned_groups_flat[sub_group], zero.optimizer.param_groups[owner]
        _attach(flat, settings, pieces, tensors_of_group[owner], zero.dp_process_group)


def _attach(
    flat: Tensor, settings: Mapping[str, Any], pieces: Sequence[Piece], tensors: Sequence[tuple[str, tuple[int, ...]]],
    group: Any,
) -> None:  # fmt: skip
    if flat.dtype == torch.bfloat16 and settings.get("param_precision") == "native":
        raise ValueError(
            "bf16_master_weights_and_grads keeps master weights in bfloat16, where small steps are lost: set "
            "param_precision to sr or split16, or switch bf16_master_weights_and_grads off"
        )
    ordered = tuple(sorted(pieces, key=lambda piece: piece.offset))
    reduce = SumOverRanks((group,)) if dist.get_world_size(group=group) > 1 else None
    attach(flat, Pieces(ordered, reduce, tuple(tensors)))

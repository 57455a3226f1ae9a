"""Parameter groups with roles: which tensors an optimizer's special rule is for, decided once, from modules and names.

An optimizer cannot decide this in a step: DeepSpeed hands it flat partitions, FSDP2 other Parameter objects.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Method = Literal["adamw", "adabelief", "frugal", "auon", "muon"]
Role = Literal["full", "split", "matrix"]
"""full: an elementwise rule with state for each element. split: FRUGAL's parts. matrix: a rule for whole matrices."""
Overrides = Mapping[str, Mapping[str, Any]]
"""Group keys by a regular expression that is searched in parameter names; of several that match, later ones win."""

SPECIAL_ROLE: dict[Method, Role] = {
    "adamw": "full", "adabelief": "full", "frugal": "split", "auon": "matrix", "muon": "matrix"
}  # fmt: skip
ALWAYS_FULL = re.compile(r"embed|lm_head|score|classifier|value_head|v_head|modules_to_save")
"""Inputs, heads and newly initialised modules: each row has statistics of its own, which a shared rule loses."""


def build_param_groups(
    model: nn.Module,
    *,
    optimizer: Method,
    weight_decay: float = 0.0,
    min_split_numel: int = 65_536,
    min_split_dim: int = 64,
    overrides: Overrides | None = None,
) -> list[dict[str, Any]]:
    """Groups of a model's trainable parameters for an optimizer of this package or torch's AdamW.

    A group has `params` (pairs of name and parameter, as torch.optim takes them), `role`, `weight_decay` and the keys
    of `overrides`; its tensors share dtype and device mesh. No group is empty. Tied parameters appear once. Vectors and
    biases are not decayed. Roles: see `parameter_roles`.

    Raises ValueError where nothing is trainable, and as `named_groups` does.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ValueError("the model has no trainable parameter: check what is frozen")
    roles = parameter_roles(model, optimizer=optimizer, min_split_numel=min_split_numel, min_split_dim=min_split_dim)
    return named_groups(trainable, roles, weight_decay=weight_decay, overrides=overrides)


def parameter_roles(
    model: nn.Module, *, optimizer: Method, min_split_numel: int = 65_536, min_split_dim: int = 64
) -> dict[str, Role]:
    """Role by parameter name, under every name that a tied parameter has.

    FRUGAL's "split" and the "matrix" of AuON and Muon are for weights of linear layers with at least `min_split_numel`
    elements and `min_split_dim` rows and columns that are not embeddings or heads, nor tied to one. All else is "full".

    Raises ValueError for an unknown optimizer.
    """
    if optimizer not in SPECIAL_ROLE:
        raise ValueError(f"optimizer is {optimizer!r}: choose one of {', '.join(SPECIAL_ROLE)}")
    owners = [
        (f"{prefix}.{name}" if prefix else name, module, parameter)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    ]
    full = {
        id(parameter)
        for name, module, parameter in owners
        if not isinstance(module, nn.Linear) or ALWAYS_FULL.search(name)
    }
    return {
        name: "full"
        if id(parameter) in full or not is_large_matrix(parameter, min_split_numel, min_split_dim)
        else SPECIAL_ROLE[optimizer]
        for name, _, parameter in owners
    }


def is_large_matrix(parameter: Tensor, min_numel: int, min_dim: int) -> bool:
    """Whether it is 2-D, of at least `min_numel` elements, with at least `min_dim` rows and columns."""
    shape = _shape(parameter)
    return len(shape) == 2 and shape[0] * shape[1] >= min_numel and min(shape) >= min_dim


def named_groups(
    named_parameters: Mapping[str, Tensor],
    roles: Mapping[str, Role],
    *,
    weight_decay: float = 0.0,
    overrides: Overrides | None = None,
) -> list[dict[str, Any]]:
    """Groups of tensors under the names that `roles` has: the parameters, or float32 masters in their place.

    Raises ValueError for names without a role, a pattern that matches nothing, an unknown role, and a special role for
    a tensor that is not 2-D.
    """
    unknown = sorted(set(named_parameters) - set(roles))
    if unknown:
        raise ValueError(f"no role for {', '.join(unknown[:5])}: names are those of the model's named_parameters()")
    overrides = overrides or {}
    for pattern in overrides:
        if not any(re.search(pattern, name) for name in named_parameters):
            some = ", ".join(list(named_parameters)[:3])
            raise ValueError(f"overrides: {pattern!r} matches no trainable parameter; names are like {some}")
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in named_parameters.items():
        matched = tuple(pattern for pattern in overrides if re.search(pattern, name))
        is_decayed = len(_shape(parameter)) >= 2 and name.rsplit(".", 1)[-1] != "bias"
        keys = {"role": roles[name], "weight_decay": weight_decay if is_decayed else 0.0}
        for pattern in matched:
            keys |= overrides[pattern]
        if keys["role"] not in get_args(Role):
            raise ValueError(f"{name} has role {keys['role']!r}: choose one of {', '.join(get_args(Role))}")
        if keys["role"] != "full" and len(_shape(parameter)) != 2:
            raise ValueError(
                f"role {keys['role']!r} is for matrices, and {name} has shape {tuple(_shape(parameter))}: use 'full'"
            )
        # kernels over lists of tensors take one dtype and one mesh
        place = (parameter.dtype, getattr(parameter, "device_mesh", None))
        group = groups.setdefault((keys["role"], keys["weight_decay"], matched, place), {"params": [], **keys})
        group["params"].append((name, parameter))
    return list(groups.values())


def describe(groups: Sequence[Mapping[str, Any]]) -> str:
    """Tensors and elements by role in one line, of `named_groups` or of an optimizer's `param_groups`."""
    counts: dict[str, list[int]] = {}
    for group in groups:
        for entry in group["params"]:
            parameter = entry[1] if isinstance(entry, tuple) else entry
            count = counts.setdefault(group.get("role", "full"), [0, 0])
            count[0] += 1
            count[1] += _shape(parameter).numel()
    return "; ".join(f"{role}: {count:,} tensors, {numel:,} elements" for role, (count, numel) in counts.items())


def _shape(parameter: Tensor) -> torch.Size:
    # under ZeRO-3 a parameter is empty, and its shape stands beside it
    return getattr(parameter, "ds_shape", parameter.shape)

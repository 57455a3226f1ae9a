"""Master weights and optimizer state of one rank, to and from the stretches of a sharded checkpoint.

State with one element for each of a weight's (moments) is cut as the weight is, and fits any number of ranks. What an
optimizer keeps otherwise (FRUGAL's selections, blocks of 8 bits) belongs to the shard it was made for.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rlhf.optim.layout import Pieces, local_flat, shaped_like
from rlhf.training.collectives import maximum, rank_of_world
from rlhf.training.weights.build import Weights
from rlhf.training.weights.shard_files import ShardReader, Stretch

WEIGHTS, STATE, BOUND = "weights", "state", "bound"


class BoundState(ValueError):
    """The optimizer's state belongs to the ranks that it was made on; the message says why and what to do."""


def stretches_of(part: str, weights: Weights) -> Iterator[Stretch]:
    """What this rank holds of `weights`, and of their optimizer's state, under names that begin with `part`."""
    rank = rank_of_world()[0]
    groups = _group_by_parameter(weights)
    for index, (parameter, flat, layout) in enumerate(weights.buffers()):
        yield from _cut(f"{part}.{WEIGHTS}/", flat, layout)
        for name, value in weights.optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor) or not _is_plain(value):
                raise BoundState(
                    f"{type(weights.optimizer).__name__} keeps {name} as {type(value).__name__}, which cannot be saved "
                    "in shards: use adamw, adabelief, frugal or auon (state_dtype: 8bit is theirs too)"
                )
            local = local_flat(value) if value.ndim else value.reshape(1)
            if not value.ndim:
                for piece in layout.pieces:
                    yield Stretch(f"{part}.{STATE}.{name}/{piece.name}", (), 0, local)
            elif _follows_weights(groups.get(id(parameter), {}), local, flat):
                yield from _cut(f"{part}.{STATE}.{name}/", local, layout)
            else:
                shape = tuple(value.to_local().shape if isinstance(value, DTensor) else value.shape)
                yield Stretch(f"{_place(part, rank, index, layout)}/{name}", shape, 0, local)


@torch.no_grad()
def load_stretches(part: str, weights: Weights, reader: ShardReader) -> None:
    """What `stretches_of` gave, perhaps on other ranks or in shards of another method. Collective.

    Raises ShardError where something is missing, BoundState where the state belongs to other shards.
    """
    rank, _ = rank_of_world()
    buffers = list(weights.buffers())
    places = [_place(part, rank, index, layout) for index, (_, _, layout) in enumerate(buffers)]
    names: dict[str, set[str]] = {}
    bound = []
    for key in sorted(reader.keys()):
        kind, _, name = key.partition("/")
        if kind.startswith(f"{part}.{STATE}."):
            names.setdefault(name, set()).add(kind.removeprefix(f"{part}.{STATE}."))
        elif kind.startswith(f"{part}.{BOUND}."):
            bound.append(key)
    _check_places(bound, places, part, reader.ranks, buffers[0][1].device)
    for place, (parameter, flat, layout) in zip(places, buffers, strict=True):
        _fill(f"{part}.{WEIGHTS}/", flat, layout, reader)
        state: dict[str, Any] = {}
        for name in sorted(set().union(*(names.get(piece.name, set()) for piece in layout.pieces))):
            prefix = f"{part}.{STATE}.{name}/"
            first = layout.pieces[0].name
            if reader.shape(prefix + first) == () and layout.pieces[0].shape != ():
                # torch's fused kernels count steps on the device, all others on the host
                where = flat.device if _counts_on_device(weights.optimizer) else "cpu"
                state[name] = reader.read(prefix + first, 0, 1).reshape(()).to(where)
                continue
            values = torch.zeros(flat.numel(), dtype=reader.dtype(prefix + first), device=flat.device)
            _fill(prefix, values, layout, reader)
            state[name] = shaped_like(values, parameter)
        for key in bound:
            if key.startswith(f"{place}/"):
                shape = reader.shape(key)
                # optimizers look at the elements on this rank, so it need not be a sharded tensor again
                values = reader.read(key, 0, torch.Size(shape).numel()).view(shape)
                state[key.removeprefix(f"{place}/")] = values.to(flat.device)
        if state:
            weights.optimizer.state[parameter] = state
    weights.publish()


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Of an optimizer's groups, without their parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def load_group_settings(optimizer: torch.optim.Optimizer, saved: list[Mapping[str, Any]]) -> None:
    """What `group_settings` gave."""
    for group, settings in zip(optimizer.param_groups, saved, strict=True):
        group.update(settings)


def _counts_on_device(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)


def _place(part: str, rank: int, index: int, layout: Pieces) -> str:
    """Names what is bound to a rank's buffer and what lies in it: ZeRO's stages and FSDP2 cut weights differently."""
    pieces = [(piece.name, piece.start, piece.numel, piece.offset) for piece in layout.pieces]
    return f"{part}.{BOUND}.{rank}.{index}.{hashlib.sha256(repr(pieces).encode()).hexdigest()[:16]}"


def _check_places(bound: list[str], places: list[str], part: str, written_by: int, device: torch.device) -> None:
    """Raises BoundState, on all ranks, where state in the checkpoint belongs to shards that one of them does not have.
    Collective."""
    if not bound:
        return
    rank, ranks = rank_of_world()
    mine = {key.partition("/")[0] for key in bound if key.startswith(f"{part}.{BOUND}.{rank}.")}
    if written_by != ranks or maximum(len(mine - set(places)), device):
        raise BoundState(
            f"the checkpoint was written by {written_by} ranks, now there are {ranks}, and its optimizer's state "
            f"({bound[0].rpartition('/')[2]}) belongs to shards as they were then: resume with {written_by} ranks and "
            "the same configuration of Accelerate, or start a new run from the exported model. AdamW, AdaBelief and "
            "AuON can change both"
        )


def _cut(prefix: str, flat: Tensor, layout: Pieces) -> Iterator[Stretch]:
    for piece in layout.pieces:
        values = flat[piece.offset : piece.offset + piece.numel]
        yield Stretch(prefix + piece.name, piece.shape, piece.start, values)


def _fill(prefix: str, flat: Tensor, layout: Pieces, reader: ShardReader) -> None:
    for piece in layout.pieces:
        flat[piece.offset : piece.offset + piece.numel] = reader.read(prefix + piece.name, piece.start, piece.numel).to(
            flat.device
        )


def _follows_weights(group: Mapping[str, Any], local: Tensor, flat: Tensor) -> bool:
    """One element for each of the weight's, whatever the shards are."""
    return local.numel() == flat.numel() and group.get("role") != "split" and group.get("state_dtype") != "8bit"


def _group_by_parameter(weights: Weights) -> dict[int, Mapping[str, Any]]:
    """ZeRO-3's flat partitions are in no group between steps; its groups differ in nothing that is asked here."""
    groups = weights.optimizer.param_groups
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    for parameter, _, _ in weights.buffers():
        found.setdefault(id(parameter), _strictest(groups))
    return found


def _strictest(groups: list[dict[str, Any]]) -> Mapping[str, Any]:
    merged: dict[str, Any] = {}
    for group in groups:
        merged |= {name: group[name] for name in ("role", "state_dtype") if group.get(name) in ("split", "8bit")}
    return merged


def _is_plain(value: Tensor) -> bool:
    return type(value).__module__.split(".")[0] == "torch"

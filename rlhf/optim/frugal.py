"""FRUGAL (Zmushko et al. 2024, arXiv 2411.07837): moments for a changing part of the weights, the sign of the gradient
for the rest."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rlhf.optim.adabelief import ADABELIEF_KEYS, check_adabelief
from rlhf.optim.base import FlatOptimizer, Slot
from rlhf.optim.carried_state import carry_state
from rlhf.optim.coordinate_split import (
    NOT_FOR_SHARDS,
    SELECTORS,
    WHOLE_TENSORS,
    WITH_VIEWS,
    chooses_any,
    group_tensors,
    select,
    state_full_names,
)
from rlhf.optim.elementwise import Job, bucket_size, resolve, run
from rlhf.optim.layout import attached
from rlhf.optim.rules import RULES, Rule
from rlhf.optim.selection import Columns, Selection
from rlhf.optim.split_jobs import split_jobs, steps_of
from rlhf.optim.state_free import STATE_FREE_RULES
from rlhf.optim.subspace_step import SUBSPACES, subspace_step

CHOICES = {
    "selector": ("auto", *SELECTORS, *SUBSPACES),
    "order": ("ascending", "descending", "mirror", "random"),
    "state_full_rule": tuple(RULES),
    "state_free_rule": tuple(STATE_FREE_RULES),
    "state_mode": ("reset", "project", "keep"),
    "rounding": ("nearest", "upstream"),
}
PROJECTABLE = (*WHOLE_TENSORS, "columns", *SUBSPACES)


class Frugal(FlatOptimizer):
    """Groups of role "split" are updated by the state-full rule on a `density` share of their elements and by the
    state-free rule on the others; a new share of a tensor is chosen every `update_gap` of its updates. Groups of role
    "full" are state-full throughout.

    `selector`: "block_budget" (whole tensors, `density` of the elements; the default), "block" (of the number of
    tensors, as in the paper's code), "chunk" (a stretch of each tensor; the default on ZeRO partitions), "columns",
    "rows", "randk", and as subspaces "svd" (singular vectors of the gradient) and "random". `state_mode` at a new
    choice: "reset" the moments to zero, "project" (elements that stay keep moments and step count) or "keep" (moments
    by position, which are then those of other elements: what GaLore does, for comparison). `state_full_lr_scale` and
    `state_free_lr_scale` scale the learning rate of split groups and, on top, of the state-free part; weight decay is
    by `lr` itself. `sign_deadzone`: gradients below this multiple of the group's RMS count as zero. `min_grad_rms`:
    below it the state-free part stands still; the sign of rounding noise is a full step. `density_end` and
    `density_epochs` let the density fall.

    At density 1 this is AdamW at every step, with nothing chosen or reset; at 0 signSGD with decoupled decay. State:
    two values for each element of full groups and for `density` of those of split groups. Raises ValueError for
    settings that contradict each other.
    """

    def __init__(
        self, params: Iterable, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float | None = None,
        weight_decay: float = 0.0, *, density: float = 0.25, update_gap: int = 200, selector: str = "auto",
        order: str = "descending", state_full_rule: str = "adamw", state_free_rule: str = "sign",
        state_full_lr_scale: float = 1.0, state_free_lr_scale: float = 1.0, state_mode: str = "reset",
        rounding: str = "nearest", sign_deadzone: float = 0.0, min_grad_rms: float = 1e-12,
        density_end: float | None = None, density_epochs: int = 1, **settings: Any,
    ) -> None:  # fmt: skip
        """`settings`: those of `SHARED_DEFAULTS`, and of AdaBelief where it is the state-full rule. `eps` is 1e-8, and
        1e-16 for AdaBelief, which adds it to its moment at every step."""
        if eps is None:
            eps = 1e-16 if state_full_rule == "adabelief" else 1e-8
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "density": density,
            "update_gap": update_gap, "selector": selector, "order": order, "state_full_rule": state_full_rule,
            "state_free_rule": state_free_rule, "state_full_lr_scale": state_full_lr_scale,
            "state_free_lr_scale": state_free_lr_scale, "state_mode": state_mode, "rounding": rounding,
            "sign_deadzone": sign_deadzone, "min_grad_rms": min_grad_rms, "density_end": density_end,
            "density_epochs": density_epochs,
        }  # fmt: skip
        self._selections: dict[Tensor, list[Selection]] = {}
        super().__init__(params, defaults | ADABELIEF_KEYS, settings)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # selections are made from the state again
        self._selections: dict[Tensor, list[Selection]] = {}

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        check_frugal(group)

    def needs_gradient_rms(self, group: Mapping[str, Any]) -> bool:
        return super().needs_gradient_rms(group) or (group["role"] == "split" and group["sign_deadzone"] > 0)

    def least_gradient_rms(self, group: Mapping[str, Any]) -> float:
        return group["min_grad_rms"] if group["role"] == "split" else 0.0

    def allocate(self, group: Mapping[str, Any], slot: Slot) -> None:
        rule = RULES[group["state_full_rule"]]
        if group["role"] == "full":
            self.allocate_full(group, slot, rule)
        else:
            slot.state |= {"step": torch.tensor(0.0), "updates": torch.tensor(0.0), "epoch": torch.tensor(-1.0)}

    def update_group(self, group: dict[str, Any], slots: list[Slot], gradient_rms: float | None) -> None:
        lr = float(group["lr"])
        rule = RULES[group["state_full_rule"]]
        if group["role"] == "full":
            self.update_full(group, slots, rule, lr)
            return
        group = group | {"selector": self._selector(group, slots)}
        is_quiet = gradient_rms is not None and gradient_rms < group["min_grad_rms"]
        free = STATE_FREE_RULES["none" if is_quiet else group["state_free_rule"]]
        full_lr = lr * group["state_full_lr_scale"]
        decay = 1 - lr * group["weight_decay"]
        threshold = group["sign_deadzone"] * (gradient_rms or 0.0)
        free_numbers = dict(free.numbers(group, full_lr * group["state_free_lr_scale"], 1))
        free_numbers |= {"decay": decay, "threshold": threshold}
        if group["selector"] in SUBSPACES:
            for slot in slots:
                subspace_step(group, slot, rule, full_lr, free, free_numbers, self._count(group, slot))
            return
        tensors = group_tensors(group, slots)
        implementation = resolve(group["impl"], sum(slot.grad.numel() for slot in slots), slots[0].grad.device)
        for batch in [slots] if group["selector"] in WITH_VIEWS else _batches(slots):
            state_full: dict[Any, list[tuple[Job, Any]]] = {}
            state_free: list[Job] = []
            endings: list[Callable[[], None]] = []
            for slot in batch:
                selections = self._begin_step(group, slot, rule, tensors)
                jobs = split_jobs(group, slot, rule, selections)
                for job, step in zip(jobs.state_full, steps_of(slot, selections), strict=True):
                    # tensors with one step count are updated together; columns with counts of their own alone
                    state_full.setdefault(step if isinstance(step, float) else id(job), []).append((job, step))
                state_free += jobs.state_free
                endings += jobs.endings
            for pairs in state_full.values():
                numbers = dict(rule.numbers(group, full_lr, pairs[0][1])) | {"decay": decay}
                run(rule, [job for job, _ in pairs], numbers, implementation)
            run(free, state_free, free_numbers, implementation)
            for end in endings:
                end()

    def _count(self, group: Mapping[str, Any], slot: Slot) -> int:
        """Count the update; the epoch that it belongs to."""
        if "updates" not in slot.state:
            self.allocate(group, slot)
        is_fixed = group["density_end"] is None and not 0 < group["density"] < 1
        epoch = 0 if is_fixed else int(slot.state["updates"]) // group["update_gap"]
        slot.state["updates"] += 1
        return epoch

    def _selector(self, group: Mapping[str, Any], slots: Sequence[Slot]) -> str:
        is_partition = attached(slots[0].parameter) is not None
        flat = [slot.name for slot in slots if slot.parameter.ndim < 2]
        if flat and not is_partition:
            raise ValueError(
                f"{flat[0]} is a flat tensor in a group of role 'split': FRUGAL chooses rows, columns, tensors. "
                "Under DeepSpeed call rlhf.optim.zero.attach_zero_layout(engine) after deepspeed.initialize; else give "
                "the group the role 'full'"
            )
        if group["selector"] in NOT_FOR_SHARDS and isinstance(slots[0].parameter, DTensor):
            raise ValueError(
                f"selector {group['selector']} under FSDP2: its moments have no rows, and a distributed checkpoint "
                "would save those of one rank for all. Use block_budget (the default) or columns"
            )
        if group["selector"] == "auto":
            return "chunk" if is_partition else "block_budget"
        return group["selector"]

    def _begin_step(
        self, group: Mapping[str, Any], slot: Slot, rule: Rule, tensors: Sequence[tuple[str, tuple[int, ...]]]
    ) -> list[Selection]:
        """Count the step; at the first of an epoch choose anew and carry the moments over."""
        epoch, state = self._count(group, slot), slot.state
        old: list[Selection] | None = self._selections.get(slot.parameter)
        if int(state["epoch"]) != epoch:
            if old is None and int(state["epoch"]) >= 0 and group["state_mode"] == "project":
                old = self._select(group, slot, tensors, int(state["epoch"]))
            state.pop("lines", None)
            new = self._select(group, slot, tensors, epoch)
            carry_state(group, slot, rule, old, new)
            state["epoch"].fill_(float(epoch))
            self._selections[slot.parameter] = new
        elif old is None:
            self._selections[slot.parameter] = self._select(group, slot, tensors, epoch)
            _check_loaded(group, slot, rule, self._selections[slot.parameter])
        selections = self._selections[slot.parameter]
        if any(map(chooses_any, selections)):
            state["step"] += 1
            if "column_step" in state:
                state["column_step"] += 1
        return selections

    @staticmethod
    def _select(
        group: Mapping[str, Any], slot: Slot, tensors: Sequence[tuple[str, tuple[int, ...]]], epoch: int
    ) -> list[Selection]:
        names = state_full_names(group, tensors, epoch) if group["selector"] in WHOLE_TENSORS else set()
        lines = slot.state.get("lines")
        device = slot.values.device
        selections = [select(group, piece, epoch, names, device, lines) for piece in slot.layout.pieces]
        if len(selections) == 1 and isinstance(selections[0], Columns):
            # kept, so that another torch, with another random permutation, resumes the same columns
            slot.state["lines"] = selections[0].columns_K
        return selections


def _batches(slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    """Slots of a bucket's elements together, or one that is larger: what is copied to be updated is bounded so."""
    batch: list[Slot] = []
    room = bucket_size(slots[0].grad.device)
    for slot in slots:
        if batch and sum(each.grad.numel() for each in batch) + slot.grad.numel() > room:
            yield batch
            batch = []
        batch.append(slot)
    yield batch


def _check_loaded(group: Mapping[str, Any], slot: Slot, rule: Rule, selections: Sequence[Selection]) -> None:
    """Raises ValueError where state was loaded without moments: torch's distributed checkpoint reads what a new
    optimizer has, and a new one has none."""
    missing = [moment.name for moment in rule.moments(group) if moment.name not in slot.state]
    if any(map(chooses_any, selections)) and missing:
        raise ValueError(
            f"the loaded state of {slot.name} lacks {', '.join(missing)}: call "
            "rlhf.optim.sharded_state.allocate_saved_state before torch.distributed.checkpoint.load"
        )


def check_frugal(group: Mapping[str, Any]) -> None:
    """Raises ValueError where FRUGAL's settings are out of range or contradict each other."""
    for name, choices in CHOICES.items():
        if group[name] not in choices:
            raise ValueError(f"{name} is {group[name]!r}: choose one of {', '.join(choices)}")
    if not 0 <= group["density"] <= 1 or not 0 <= (group["density_end"] or 0) <= 1:
        raise ValueError(f"density is {group['density']} (to {group['density_end']}): it must be in [0, 1]")
    for name in ("update_gap", "density_epochs"):
        if not isinstance(group[name], int) or group[name] < 1:
            raise ValueError(f"{name} is {group[name]!r}: it must be a whole number, 1 or more")
    for name in ("state_full_lr_scale", "state_free_lr_scale", "sign_deadzone", "min_grad_rms"):
        if group[name] < 0:
            raise ValueError(f"{name} is {group[name]}: it must be 0 or more")
    if group["state_mode"] == "project" and group["selector"] not in PROJECTABLE:
        raise ValueError(
            f"state_mode project needs the selector {', '.join(PROJECTABLE)} (got {group['selector']}): elements of "
            "others have no step count of their own"
        )
    if group["state_full_rule"] == "adabelief":
        check_adabelief(group)
        if group["rectify"] and group["state_mode"] == "project" and group["selector"] == "columns":
            raise ValueError("rectify takes one step count, and projected columns have their own: turn one of them off")
    if group["role"] == "matrix":
        raise ValueError("Frugal takes groups of role full and split: build_param_groups(model, optimizer='frugal')")

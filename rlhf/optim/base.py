"""What the optimizers of this package share: one pass over the gradients, gates, state that survives saving."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from rlhf.optim.buffers import BLOCK, SMALLEST_QUANTIZED, allocate_state, parameter_buffer, state_buffer
from rlhf.optim.elementwise import Job, resolve, run
from rlhf.optim.gates import group_rms
from rlhf.optim.hashing import tensor_key
from rlhf.optim.layout import Pieces, attached, local_flat, pieces_of, placed_like, shaped_like, sum_by_layout
from rlhf.optim.noise import Noise
from rlhf.optim.rules import Rule

SHARED_DEFAULTS = {
    "role": "full", "impl": "auto", "state_dtype": "float32", "param_precision": "native", "seed": 0,
    "skip_nonfinite": True, "maximize": False,
}  # fmt: skip
"""Group keys that all optimizers have.

`role`: "full" (elementwise rule), "split" (FRUGAL) or "matrix" (AuON); see rlhf.optim.parameter_groups.
`impl`: "auto", "foreach", "compiled", "loop". `state_dtype`: "float32", "bfloat16" (stochastic rounding), "8bit".
`param_precision`: "native", or for bfloat16 parameters "sr" (stochastic rounding), "split16", "split8" (their lost bits
beside them); float64 parameters have float64 state. `seed`: rounding and selection are functions of it.
`skip_nonfinite`: a step with a NaN or an infinity in a gradient of such a group changes nothing, in any group.
"""
NOT_SHARDED = ("lines", "column_step", "basis")
"""State that every rank has whole where the parameter is sharded."""
CHOICES = {
    "role": ("full", "split", "matrix"),
    "impl": ("auto", "foreach", "compiled", "loop"),
    "state_dtype": ("float32", "bfloat16", "8bit"),
    "param_precision": ("native", "sr", "split16", "split8"),
}


@dataclass(slots=True)
class Slot:
    """A parameter that is updated now: its local elements, their gradient and where they belong."""

    parameter: Tensor
    values: Tensor
    grad: Tensor
    name: str
    layout: Pieces
    state: dict[str, Any]

    @property
    def key(self) -> int:
        return tensor_key(self.name)


class FlatOptimizer(Optimizer):
    """Base class. A subclass updates one group's slots in `update_group`."""

    def __init__(self, params: Iterable, defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Raises TypeError for settings that are none of the defaults."""
        defaults = {**SHARED_DEFAULTS, **defaults}
        unknown = sorted(set(settings) - set(defaults))
        if unknown:
            raise TypeError(f"{type(self).__name__} has no setting {', '.join(unknown)}: it has {', '.join(defaults)}")
        super().__init__(params, defaults | dict(settings))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        param_group.setdefault("first_parameter", sum(len(group["params"]) for group in self.param_groups))
        # before it is one of the groups
        self.check_group(self.defaults | param_group)
        super().add_param_group(param_group)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raises ValueError naming the key, its value and what it may be."""
        if group["lr"] < 0:
            raise ValueError(f"lr is {group['lr']}: it must be 0 or more")
        if group["weight_decay"] < 0:
            raise ValueError(f"weight_decay is {group['weight_decay']}: it must be 0 or more")
        for beta in group["betas"]:
            if not 0 <= beta < 1:
                raise ValueError(f"betas are {group['betas']}: each must be in [0, 1)")
        if group["eps"] < 0:
            raise ValueError(f"eps is {group['eps']}: it must be 0 or more")
        for name, choices in CHOICES.items():
            if group[name] not in choices:
                raise ValueError(f"{name} is {group[name]!r}: choose one of {', '.join(choices)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimizer step over the groups there are now: DeepSpeed calls it once for each of them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, self._slots(group)) for group in self.param_groups]
        work = [(group, slots) for group, slots in work if slots]
        if not work:
            return loss
        is_materialising = self._is_materialising(work)
        sums = None if is_materialising else self._gradient_sums(work)
        checked = zip(work, sums or (), strict=False)
        if any(group["skip_nonfinite"] and not math.isfinite(rms) for (group, _), rms in checked):
            return loss
        # only now: torch takes an entry, be it empty, for state that need not be made
        self.state.update({slot.parameter: slot.state for _, slots in work for slot in slots})
        if is_materialising:
            self._materialise(work)
            return loss
        for index, (group, slots) in enumerate(work):
            self.update_group(group, slots, None if sums is None else sums[index])
        return loss

    def update_group(self, group: dict[str, Any], slots: list[Slot], gradient_rms: float | None) -> None:
        """Update the slots of one group; `gradient_rms` is over the whole group, None where no gate asks for it."""
        raise NotImplementedError

    def allocate(self, group: Mapping[str, Any], slot: Slot) -> None:
        """Make the state that a step of `slot` needs, at step 0."""
        raise NotImplementedError

    def needs_gradient_rms(self, group: Mapping[str, Any]) -> bool:
        """Whether the size of the group's gradient must be known exactly."""
        return group["skip_nonfinite"]

    def least_gradient_rms(self, group: Mapping[str, Any]) -> float:
        """What the size of the group's gradient is compared with, 0 where it is not."""
        return 0.0

    def update_full(self, group: dict[str, Any], slots: list[Slot], rule: Rule, lr: float) -> None:
        """The elementwise rule on every element of the slots."""
        by_step: dict[float, list[Job]] = {}
        for slot in slots:
            self.allocate_full(group, slot, rule)
        torch._foreach_add_([slot.state["step"] for slot in slots], 1)
        for slot in slots:
            step = float(slot.state["step"])
            by_step.setdefault(step, []).append(full_job(group, slot, rule, step))
        for step, jobs in by_step.items():
            elements = sum(job.numel for job in jobs)
            run(rule, jobs, rule.numbers(group, lr, step), resolve(group["impl"], elements, jobs[0].grad.device))

    def allocate_full(self, group: Mapping[str, Any], slot: Slot, rule: Rule) -> None:
        """The rule's moments for every element, shaped (and sharded) like the parameter."""
        if "step" not in slot.state:
            slot.state["step"] = torch.tensor(0.0)
        for moment in rule.moments(group):
            if moment.name not in slot.state:
                allocate_moment(group, slot, moment.name)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a saved state with its exact dtypes: torch's own method casts state to the parameter's dtype.

        State of whole tensors is cut as the parameters are here, and sharded state is gathered for whole parameters.
        """
        super().load_state_dict(state_dict)
        saved_ids = [index for group in state_dict["param_groups"] for index in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved_ids, parameters, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    moved = value.detach().clone()
                    # scalars are counters, kept on the CPU
                    if moved.ndim and name not in NOT_SHARDED:
                        moved = placed_like(moved, parameter)
                    self.state[parameter][name] = moved if moved.ndim == 0 else moved.to(parameter.device)

    def _slots(self, group: dict[str, Any]) -> list[Slot]:
        names = parameter_names(group)
        slots = []
        for index, parameter in enumerate(group["params"]):
            grad = parameter.grad
            if grad is None:
                continue
            if grad.is_sparse:
                raise ValueError(f"{type(self).__name__} takes dense gradients, and that of {names[index]} is sparse")
            # a flat partition replaces the parameters of its group: it has one name, whatever theirs were
            name = names[index] if len(names) == len(group["params"]) else f"partition.{index}"
            grad = local_flat(grad.contiguous())
            grad = -grad if group["maximize"] else grad
            layout = pieces_of(parameter, name)
            slots.append(Slot(parameter, local_flat(parameter), grad, name, layout, self.state.get(parameter, {})))
        return slots

    def _is_materialising(self, work: list[tuple[dict[str, Any], list[Slot]]]) -> bool:
        """Whether it is the step of learning rate 0 with zero gradients by which torch's distributed checkpoint makes
        state: state is allocated, and no counter moves."""
        if any(float(group["lr"]) != 0 for group, _ in work):
            return False
        every = [slot for _, slots in work for slot in slots]
        if any(slot.state for slot in every):
            return False
        # all ranks decide alike: a rank's own part of a gradient may be zero where the others' are not
        counts = torch.stack([slot.grad.count_nonzero() for slot in every])
        return not sum_by_layout([slot.layout for slot in every], counts).any()

    def _materialise(self, work: list[tuple[dict[str, Any], list[Slot]]]) -> None:
        for group, slots in work:
            for slot in slots:
                self.allocate(group, slot)
                parameter_buffer(slot.parameter, slot.state, group["param_precision"])

    def _gradient_sums(self, work: list[tuple[dict[str, Any], list[Slot]]]) -> list[float] | None:
        """The RMS of each group's gradient over all ranks that hold parts of it (or what no gate tells from it), or
        None where no gate looks at any."""
        enough = [None if self.needs_gradient_rms(group) else self.least_gradient_rms(group) for group, _ in work]
        if all(least == 0 for least in enough):
            return None
        grads = [[slot.grad for slot in slots] for _, slots in work]
        return group_rms(grads, [[slot.layout for slot in slots] for _, slots in work], enough)


def parameter_names(group: Mapping[str, Any]) -> list[str]:
    """Names of the group's parameters; those without a name are numbered through all groups."""
    first = group.get("first_parameter", 0)
    return group.get("param_names") or [f"parameter.{first + index}" for index in range(len(group["params"]))]


def lacks_layout(group: Mapping[str, Any]) -> bool:
    """Whether flat partitions stand in for the group's tensors, and nothing says what they consist of. A partition of
    one tensor is not noticed."""
    is_replaced = len(group.get("param_names", group["params"])) != len(group["params"])
    return is_replaced and any(attached(parameter) is None for parameter in group["params"])


def full_job(group: Mapping[str, Any], slot: Slot, rule: Rule, step: float) -> Job:
    """Every local element of a slot, at its `step`."""
    numel = slot.values.numel()
    moments = [
        state_buffer(slot.state, moment.name, group["state_dtype"], moment.signed) for moment in rule.moments(group)
    ]
    param = parameter_buffer(slot.parameter, slot.state, group["param_precision"], slot.values)
    return Job(param, 0, slot.grad, moments, 0, numel, noise_of(group, slot, int(step)))


def noise_of(group: Mapping[str, Any], slot: Slot, step: int) -> Noise:
    """Random bits for the slot's elements at a step."""
    return Noise(group["seed"], step, slot.layout, slot.values.device)


def compute_dtype(values: Tensor) -> torch.dtype:
    """Arithmetic is in float32, in float64 where the parameter is."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def allocate_moment(group: Mapping[str, Any], slot: Slot, name: str, width: int | None = None) -> None:
    """Zeros for state `name`, shaped and sharded like the parameter, or like rows of `width` elements.

    Raises ValueError for 8-bit state of a sharded matrix whose rows are not whole blocks: a block would lie on two
    ranks.
    """
    parameter, state, state_dtype, smallest = slot.parameter, slot.state, group["state_dtype"], SMALLEST_QUANTIZED
    row = torch.Size(parameter.shape[1:]).numel()
    width = row if width is None else width
    if isinstance(parameter, DTensor) and state_dtype == "8bit":
        # the same on all ranks, however few elements they have
        is_small = parameter.ndim < 2 or parameter.shape[0] * width < SMALLEST_QUANTIZED
        state_dtype, smallest = ("float32" if is_small else "8bit"), 0
        if not is_small and width % BLOCK:
            raise ValueError(
                f"8-bit state has a scale for each {BLOCK} elements, and that of {slot.name} has rows of {width}, which"
                " FSDP2 puts on different ranks: set state_dtype to bfloat16"
            )
    numel = slot.values.numel() // max(row, 1) * width
    allocate_state(state, name, numel, state_dtype, compute_dtype(slot.values), slot.values.device, smallest)
    shape = None if width == row else width
    state[name] = shaped_like(state[name], parameter, shape)
    if f"{name}_absmax" in state and isinstance(parameter, DTensor):
        state[f"{name}_absmax"] = shaped_like(state[f"{name}_absmax"], parameter, width // BLOCK)

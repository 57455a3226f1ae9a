"""AuON (arXiv 2509.24320): momentum normalised by the norm of each matrix, AdamW for everything else, in one optimizer.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from rlhf.optim import auon_rule
from rlhf.optim.base import FlatOptimizer, Slot, allocate_moment, noise_of
from rlhf.optim.buffers import Buffer, parameter_buffer, state_buffer
from rlhf.optim.elementwise import bucket_ranges, read_all, write_all
from rlhf.optim.layout import Piece, attached, sum_by_tensor
from rlhf.optim.norms import sum_of_squares
from rlhf.optim.rules import RULES

CHOICES = {
    "mode": ("paper", "repository"),
    "brake": ("series", "exact", "log"),
    "adjust_lr": ("paper", "match_rms_adamw", "none"),
}


class AuON(FlatOptimizer):
    """Groups of role "matrix" get the normalised update, groups of role "full" AdamW.

    `mode` "paper": X = u / (|u| + eps_norm), divided by r, where u is Nesterov momentum; r is 1 up to 1.4 / (elements
    of the matrix), so this is normalised momentum SGD. "repository": the form of the authors' code, u / r, which is
    momentum SGD: its step grows with the gradient. `ns_steps` > 0 orthogonalises X by that many Newton-Schulz
    iterations first (Hybrid-AuON: 1). `adjust_lr`: "paper" multiplies by sqrt(max(1, rows / columns)),
    "match_rms_adamw" makes a step's RMS 0.2 lr so that AdamW's learning rates carry over. `brake` is how r is computed;
    "log" is an experiment (rlhf.optim.auon_rule). `min_grad_rms`: below it the matrices of a group stand still; a
    normalised step has full size whatever the gradient. `adamw_lr` is the learning rate of groups of role "full"
    (default: `lr`).

    State: one value for each element of matrices, two for others. Raises ValueError for settings that contradict each
    other.
    """

    def __init__(
        self, params: Iterable, lr: float = 0.05, momentum: float = 0.95, *, mode: str = "paper", ns_steps: int = 0,
        brake: str = "series", adjust_lr: str = "paper", eps_norm: float = 1e-7, eps_divisor: float = 1e-8,
        weight_decay: float = 0.01, adamw_lr: float | None = None, betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8, min_grad_rms: float = 1e-12, **settings: Any,
    ) -> None:  # fmt: skip
        """`settings`: those of `SHARED_DEFAULTS`; `betas` and `eps` are AdamW's."""
        defaults = {
            "lr": lr, "momentum": momentum, "mode": mode, "ns_steps": ns_steps, "brake": brake, "adjust_lr": adjust_lr,
            "eps_norm": eps_norm, "eps_divisor": eps_divisor, "weight_decay": weight_decay, "adamw_lr": adamw_lr,
            "betas": tuple(betas), "eps": eps, "min_grad_rms": min_grad_rms,
        }  # fmt: skip
        super().__init__(params, defaults, settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        role = param_group.get("role", self.defaults["role"])
        adamw_lr = param_group.get("adamw_lr", self.defaults["adamw_lr"])
        if role == "full" and adamw_lr is not None:
            # as the group's own learning rate, schedulers scale it like the others
            param_group.setdefault("lr", adamw_lr)
        super().add_param_group(param_group)

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        for name, choices in CHOICES.items():
            if group[name] not in choices:
                raise ValueError(f"{name} is {group[name]!r}: choose one of {', '.join(choices)}")
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum is {group['momentum']}: it must be in [0, 1)")
        for name in ("eps_norm", "eps_divisor", "min_grad_rms"):
            if group[name] < 0:
                raise ValueError(f"{name} is {group[name]}: it must be 0 or more")
        if not isinstance(group["ns_steps"], int) or group["ns_steps"] < 0:
            raise ValueError(f"ns_steps is {group['ns_steps']!r}: it must be a whole number, 0 or more")
        if group["brake"] != "series" and (group["ns_steps"] or group["mode"] == "repository"):
            raise ValueError(
                f"brake {group['brake']} is for mode paper without ns_steps, which have divisors of their own: leave it"
            )
        if group["adjust_lr"] == "match_rms_adamw" and group["mode"] == "repository":
            raise ValueError(
                "adjust_lr match_rms_adamw is for normalised steps, and those of mode repository grow with the "
                "gradient: set adjust_lr to none"
            )
        if group["role"] == "split":
            raise ValueError("AuON takes groups of role full and matrix: build_param_groups(model, optimizer='auon')")

    def least_gradient_rms(self, group: Mapping[str, Any]) -> float:
        return group["min_grad_rms"] if group["role"] == "matrix" else 0.0

    def allocate(self, group: Mapping[str, Any], slot: Slot) -> None:
        if group["role"] == "full":
            self.allocate_full(group, slot, RULES["adamw"])
        elif "step" not in slot.state:
            slot.state["step"] = torch.tensor(0.0)
            allocate_moment(group, slot, "momentum_buffer")

    def update_group(self, group: dict[str, Any], slots: list[Slot], gradient_rms: float | None) -> None:
        if group["role"] == "full":
            self.update_full(group, slots, RULES["adamw"], float(group["lr"]))
            return
        for slot in slots:
            # saving needs state of all parameters, those that stood still too
            self.allocate(group, slot)
        if gradient_rms is not None and gradient_rms < group["min_grad_rms"]:
            return
        works = [_work(group, slot) for slot in slots]
        if group["ns_steps"]:
            for work in works:
                for piece in work.slot.layout.pieces:
                    _hybrid_step(group, work, piece)
        else:
            _normalised_step(group, works)


@dataclass(slots=True)
class Work:
    """A slot of matrices, or pieces of them, and how its values and momenta are kept."""

    slot: Slot
    param: Buffer
    momentum: Buffer
    noise: Callable[[str, int, int], Tensor]

    def nesterov(self, mu: float, start: int, stop: int) -> Tensor:
        """u of the elements, by the momentum as it is kept."""
        momentum = self.momentum.read(start, stop)
        return auon_rule.nesterov([momentum], [self.slot.grad[start:stop].to(momentum.dtype)], mu)[0]


def _work(group: Mapping[str, Any], slot: Slot) -> Work:
    if attached(slot.parameter) is None and slot.parameter.ndim != 2:
        raise ValueError(
            f"{slot.name} has shape {tuple(slot.parameter.shape)} in a group of role 'matrix'. Under DeepSpeed call "
            "rlhf.optim.zero.attach_zero_layout(engine) after deepspeed.initialize; else give the group the role 'full'"
        )
    slot.state["step"] += 1
    param = parameter_buffer(slot.parameter, slot.state, group["param_precision"])
    momentum = state_buffer(slot.state, "momentum_buffer", group["state_dtype"], signed=True)
    return Work(slot, param, momentum, noise_of(group, slot, int(slot.state["step"])))


def _normalised_step(group: Mapping[str, Any], works: Sequence[Work]) -> None:
    """Two passes with no scratch beyond a bucket: the momentum and the sums that a matrix needs of all its elements,
    one reduction over ranks, then the step, for which u is computed again."""
    mu, lr, device = group["momentum"], float(group["lr"]), works[0].slot.grad.device
    layouts = [work.slot.layout for work in works]
    pieces = [(work, piece) for work in works for piece in work.slot.layout.pieces]
    numels = [torch.Size(piece.shape).numel() for _, piece in pieces]

    def sinh_sums(scale_P: Tensor, limits: Sequence[float] | None) -> Tensor:
        sums_P = torch.zeros_like(scale_P)
        for index, (work, piece) in enumerate(pieces):
            scale, limit = scale_P[index : index + 1], None if limits is None else limits[index : index + 1]
            for start, stop in bucket_ranges(piece.offset, piece.offset + piece.numel, device):
                sums_P[index] += auon_rule.sums_of_sinh_squares([work.nesterov(mu, start, stop)], scale, limit)[0]
        return sum_by_tensor(layouts, sums_P)

    squares_P = torch.cat([_update_momentum(work, mu) for work in works])
    settings = {"eps_norm": group["eps_norm"], "eps_divisor": group["eps_divisor"]}
    square_sum_P = sum_by_tensor(layouts, squares_P)
    if group["mode"] == "repository":
        scales_P = auon_rule.repository_scales_of_sums(square_sum_P, numels, sinh_sums, **settings)
    else:
        scales_P = auon_rule.paper_scales_of_sums(square_sum_P, numels, sinh_sums, group["brake"], **settings)
    shapes = torch.tensor([_shape_scale(group, piece) for _, piece in pieces], dtype=torch.float64, device=device)
    decay = 1 - lr * group["weight_decay"]
    for (work, piece), factor in zip(pieces, scales_P * shapes * lr, strict=True):
        for start, stop in bucket_ranges(piece.offset, piece.offset + piece.numel, device):
            param = work.param.read(start, stop)
            auon_rule.apply_([param], [work.nesterov(mu, start, stop)], factor[None], decay)
            work.param.write(start, stop, param, functools.partial(work.noise, "param", start, stop - start))


def _update_momentum(work: Work, mu: float) -> Tensor:
    """Sum of the squares of each piece's u, shape (P,), float64."""
    slot, device = work.slot, work.slot.grad.device
    sums_P = torch.zeros(len(slot.layout.pieces), dtype=torch.float64, device=device)
    # over the slot, not its pieces: scales of 8-bit state are of blocks from its beginning on
    for start, stop in bucket_ranges(0, slot.values.numel(), device):
        momentum = work.momentum.read(start, stop)
        grad = slot.grad[start:stop].to(momentum.dtype)
        auon_rule.update_momentum_([momentum], [grad], mu)
        (u,) = auon_rule.nesterov([momentum], [grad], mu)
        for index, first, last in slot.layout.parts(start, stop):
            sums_P[index] += sum_of_squares(u[first - start : last - start])
        work.momentum.write(start, stop, momentum, functools.partial(work.noise, "moment0", start, stop - start))
    return sums_P


def _shape_scale(group: Mapping[str, Any], piece: Piece) -> float:
    rows, columns = piece.shape
    return 1.0 if group["mode"] == "repository" else auon_rule.shape_scale(rows, columns, group["adjust_lr"])


def _hybrid_step(group: Mapping[str, Any], work: Work, piece: Piece) -> None:
    """Newton-Schulz needs the matrix: whole, or whole rows of it."""
    lr, slot, device = float(group["lr"]), work.slot, work.slot.grad.device
    rows, columns = piece.shape
    if piece.start % columns or piece.numel % columns:
        raise ValueError(
            f"ns_steps = {group['ns_steps']} needs whole rows, and this rank's piece of {piece.name} cuts one (a ZeRO "
            "partition): set ns_steps to 0, or use FSDP2 or DDP"
        )
    start, stop = piece.offset, piece.offset + piece.numel
    u_MN = _updated_u(work, start, stop, group["momentum"]).view(-1, columns)
    # also on a rank that has all rows: those without any take part
    reduce = slot.layout.reduce
    settings = {"eps_norm": group["eps_norm"], "eps_divisor": group["eps_divisor"]}
    brake = "paper" if group["mode"] == "paper" else "repository"
    if reduce is not None and rows < columns:
        whole_MN = _gathered(u_MN, slot.parameter)
        direction_MN = auon_rule.hybrid_direction(whole_MN, group["ns_steps"], brake, **settings)
        first = piece.start // columns
        direction_MN = direction_MN[first : first + u_MN.shape[0]]
    else:
        direction_MN = auon_rule.hybrid_direction(
            u_MN, group["ns_steps"], brake, rows=rows, reduce=reduce, **settings
        )
    param = read_all(work.param, start, stop, device)
    param.mul_(1 - lr * group["weight_decay"])
    param.add_(direction_MN.reshape(-1), alpha=-lr * _shape_scale(group, piece))
    write_all(work.param, start, param, lambda offset, numel: work.noise("param", start + offset, numel))


def _updated_u(work: Work, start: int, stop: int, mu: float) -> Tensor:
    """u of the elements by the momentum that this step makes."""
    momentum = read_all(work.momentum, start, stop, work.slot.grad.device)
    grad = work.slot.grad[start:stop].to(momentum.dtype)
    auon_rule.update_momentum_([momentum], [grad], mu)
    (u,) = auon_rule.nesterov([momentum], [grad], mu)
    write_all(work.momentum, start, momentum, lambda offset, numel: work.noise("moment0", start + offset, numel))
    return u


def _gathered(local_MN: Tensor, parameter: Tensor) -> Tensor:
    """The whole matrix from the rows on each rank."""
    if not isinstance(parameter, DTensor):
        raise ValueError("a wide matrix that is sharded by rows can be gathered under FSDP2 alone: set ns_steps to 0")
    assert any(isinstance(placement, Shard) for placement in parameter.placements)
    return DTensor.from_local(
        local_MN, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride(),
        run_check=False,
    ).full_tensor()  # fmt: skip

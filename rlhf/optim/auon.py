"""AuON (arXiv 2509.24320): momentum normalised by the norm of each matrix, AdamW for everything else, in one optimizer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from rlhf.optim import auon_rule
from rlhf.optim.base import FlatOptimizer, Slot, allocate_moment, noise_of
from rlhf.optim.buffers import Buffer, parameter_buffer, state_buffer
from rlhf.optim.elementwise import BUCKET_CPU, BUCKET_GPU
from rlhf.optim.layout import Piece, attached, sum_by_tensor
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
        if not isinstance(group["ns_steps"], int) or group["ns_steps"] < 0:
            raise ValueError(f"ns_steps is {group['ns_steps']!r}: it must be a whole number, 0 or more")
        if group["role"] == "split":
            raise ValueError("AuON takes groups of role full and matrix: build_param_groups(model, optimizer='auon')")

    def needs_gradient_rms(self, group: Mapping[str, Any]) -> bool:
        return super().needs_gradient_rms(group) or (group["role"] == "matrix" and group["min_grad_rms"] > 0)

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
        matrices = []
        for slot in slots:
            slot.state["step"] += 1
            matrices += _matrices(group, slot)
        if group["ns_steps"]:
            for matrix in matrices:
                _hybrid_step(group, matrix)
        else:
            _normalised_step(group, slots, matrices)


@dataclass(slots=True)
class Matrix:
    """The elements of one matrix on this rank: parameter, gradient and momentum from the piece's offset on."""

    slot: Slot
    piece: Piece
    param: Buffer
    momentum: Buffer
    noise: Callable[[str, int, int], Tensor]

    def ranges(self) -> Iterator[tuple[int, int]]:
        """The piece cut for bounded scratch, in elements of the slot."""
        size = BUCKET_CPU if self.slot.grad.device.type == "cpu" else BUCKET_GPU
        first, last = self.piece.offset, self.piece.offset + self.piece.numel
        for start in range(first, last, size):
            yield start, min(start + size, last)

    def bits(self, field: str, start: int, stop: int) -> Callable[[], Tensor]:
        return lambda: self.noise(field, start, stop - start)


def _matrices(group: Mapping[str, Any], slot: Slot) -> list[Matrix]:
    if attached(slot.parameter) is None and slot.parameter.ndim != 2:
        raise ValueError(
            f"{slot.name} has shape {tuple(slot.parameter.shape)} in a group of role 'matrix'. Under DeepSpeed call "
            "rlhf.optim.zero.attach_zero_layout(engine) after deepspeed.initialize; else give the group the role 'full'"
        )
    param = parameter_buffer(slot.parameter, slot.state, group["param_precision"])
    momentum = state_buffer(slot.state, "momentum_buffer", group["state_dtype"], signed=True)
    noise = noise_of(group, slot, int(slot.state["step"]))
    return [Matrix(slot, piece, param, momentum, noise) for piece in slot.layout.pieces]


def _normalised_step(group: Mapping[str, Any], slots: Sequence[Slot], matrices: Sequence[Matrix]) -> None:
    """Two passes with no scratch beyond a bucket: the momentum and the sums that a matrix needs of all its elements,
    one reduction over ranks, then the step, for which u is computed again."""
    mu, lr, device = group["momentum"], float(group["lr"]), slots[0].grad.device
    layouts = [slot.layout for slot in slots]

    def reduce(sums_P: Tensor) -> Tensor:
        return sum_by_tensor(layouts, sums_P.to(device))

    squares = torch.zeros(len(matrices), dtype=torch.float64, device=device)
    for index, matrix in enumerate(matrices):
        for start, stop in matrix.ranges():
            momentum = matrix.momentum.read(start, stop)
            grad = matrix.slot.grad[start:stop].to(momentum.dtype)
            auon_rule.update_momentum_([momentum], [grad], mu)
            (u,) = auon_rule.nesterov([momentum], [grad], mu)
            squares[index] += auon_rule.sums_of_squares([u])[0]
            matrix.momentum.write(start, stop, momentum, matrix.bits("moment0", start, stop))
    factors = _scales(group, matrices, reduce(squares), reduce)
    shapes = [_shape_scale(group, matrix) for matrix in matrices]
    factors = factors * torch.tensor(shapes, dtype=torch.float64, device=device) * lr
    decay = 1 - lr * group["weight_decay"]
    for matrix, factor in zip(matrices, factors, strict=True):
        for start, stop in matrix.ranges():
            param = matrix.param.read(start, stop)
            auon_rule.apply_([param], [_u(group, matrix, start, stop)], factor[None], decay)
            matrix.param.write(start, stop, param, matrix.bits("param", start, stop))


def _u(group: Mapping[str, Any], matrix: Matrix, start: int, stop: int) -> Tensor:
    momentum = matrix.momentum.read(start, stop)
    (u,) = auon_rule.nesterov([momentum], [matrix.slot.grad[start:stop].to(momentum.dtype)], group["momentum"])
    return u


def _scales(
    group: Mapping[str, Any], matrices: Sequence[Matrix], square_sum_P: Tensor, reduce: auon_rule.Reduce
) -> Tensor:
    """The factor of u in each matrix's step, before the learning rate and the shape's scale."""
    numels = [torch.Size(matrix.piece.shape).numel() for matrix in matrices]
    numel_P = torch.tensor(numels, dtype=torch.float64, device=square_sum_P.device)
    norm_P = square_sum_P.sqrt() + group["eps_norm"]
    if group["mode"] == "paper" and group["brake"] == "series":
        divisor_P = auon_rule.series_divisor(square_sum_P, numel_P, group["eps_norm"])
        return 1 / (norm_P * (divisor_P + group["eps_divisor"]))
    # the other divisors pass over the elements again: whole pieces, for parity with published forms
    us = [_u(group, m, m.piece.offset, m.piece.offset + m.piece.numel) for m in matrices]
    if group["mode"] == "repository":
        return auon_rule.repository_scales(
            us, numels, eps_norm=group["eps_norm"], eps_divisor=group["eps_divisor"], reduce=reduce
        )
    return auon_rule.paper_scales(
        us, numels, group["brake"], eps_norm=group["eps_norm"], eps_divisor=group["eps_divisor"], reduce=reduce
    )


def _shape_scale(group: Mapping[str, Any], matrix: Matrix) -> float:
    rows, columns = matrix.piece.shape
    return 1.0 if group["mode"] == "repository" else auon_rule.shape_scale(rows, columns, group["adjust_lr"])


def _hybrid_step(group: Mapping[str, Any], matrix: Matrix) -> None:
    """Newton-Schulz needs the matrix: whole, or whole rows of it."""
    piece, lr = matrix.piece, float(group["lr"])
    rows, columns = piece.shape
    if piece.start % columns or piece.numel % columns:
        raise ValueError(
            f"ns_steps = {group['ns_steps']} needs whole rows, and this rank's piece of {piece.name} cuts one (a ZeRO "
            "partition): set ns_steps to 0, or use FSDP2 or DDP"
        )
    start, stop = piece.offset, piece.offset + piece.numel
    momentum = matrix.momentum.read(start, stop)
    grad = matrix.slot.grad[start:stop].to(momentum.dtype)
    auon_rule.update_momentum_([momentum], [grad], group["momentum"])
    (u,) = auon_rule.nesterov([momentum], [grad], group["momentum"])
    matrix.momentum.write(start, stop, momentum, matrix.bits("moment0", start, stop))
    u_MN = u.view(-1, columns)
    # also on a rank that has all rows: those without any take part
    reduce = matrix.slot.layout.reduce
    settings = {"eps_norm": group["eps_norm"], "eps_divisor": group["eps_divisor"]}
    brake = "paper" if group["mode"] == "paper" else "repository"
    if reduce is not None and rows < columns:
        whole_MN = _gathered(u_MN, matrix.slot.parameter)
        direction_MN = auon_rule.hybrid_direction(whole_MN, group["ns_steps"], brake, **settings)
        first = piece.start // columns
        direction_MN = direction_MN[first : first + u_MN.shape[0]]
    else:
        direction_MN = auon_rule.hybrid_direction(
            u_MN, group["ns_steps"], brake, rows=rows, reduce=reduce, **settings
        )
    param = matrix.param.read(start, stop)
    param.mul_(1 - lr * group["weight_decay"])
    param.add_(direction_MN.reshape(-1), alpha=-lr * _shape_scale(group, matrix))
    matrix.param.write(start, stop, param, matrix.bits("param", start, stop))


def _gathered(local_MN: Tensor, parameter: Tensor) -> Tensor:
    """The whole matrix from the rows on each rank."""
    if not isinstance(parameter, DTensor):
        raise ValueError("a wide matrix that is sharded by rows can be gathered under FSDP2 alone: set ns_steps to 0")
    assert any(isinstance(placement, Shard) for placement in parameter.placements)
    return DTensor.from_local(
        local_MN, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride(),
        run_check=False,
    ).full_tensor()  # fmt: skip

"""A model whose gradients are given: however it is trained, each step must be that of one process with their mean.

Gradients and weights are small multiples of powers of two, so that they, their sum over two ranks and its half are
exact in bfloat16: what differs between two ways to train is the optimizer's doing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.optim import AdaBelief, AuON, Frugal
from rlhf.optim.hashing import generator, mix, tensor_key
from rlhf.optim.parameter_groups import build_param_groups
from rlhf.optim.schedules import choose_chunk

STEPS, SAVED_AFTER, GAP = 6, 3, 2
"""A checkpoint lies in the middle of an epoch of FRUGAL, and another epoch begins after it."""


class GivenLinear(nn.Linear):
    def forward(self, gradients: Mapping[str, Tensor]) -> Tensor:
        return dot(self, gradients)


class GivenEmbedding(nn.Embedding):
    def forward(self, gradients: Mapping[str, Tensor]) -> Tensor:
        return dot(self, gradients)


class GivenNorm(nn.RMSNorm):
    def forward(self, gradients: Mapping[str, Tensor]) -> Tensor:
        return dot(self, gradients)


def dot(module: nn.Module, gradients: Mapping[str, Tensor]) -> Tensor:
    """A loss with these gradients."""
    return sum((parameter * gradients[name].to(parameter.dtype)).sum() for name, parameter in module.named_parameters())


class GivenModel(nn.Module):
    """Shapes that two ranks cut unevenly (5 x 6, 7 x 5), not at all (1 x 40) and as in a small Llama.

    `only_large` leaves the latter. `fill` off: the weights are torch's random ones.
    """

    def __init__(self, only_large: bool = False, fill: bool = True) -> None:
        super().__init__()
        self.embedding = GivenEmbedding(100, 64)
        self.up = GivenLinear(96, 192, bias=False)
        if not only_large:
            self.small = GivenLinear(6, 5, bias=False)
            self.odd = GivenLinear(5, 7)
            self.row = GivenLinear(40, 1, bias=False)
            self.wide = GivenLinear(256, 17, bias=False)
        self.narrow = GivenLinear(96, 48, bias=False)
        self.norm = GivenNorm(96)
        self.down = GivenLinear(192, 96, bias=False)
        if fill:
            self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """The weights that all comparisons begin with."""
        for name, parameter in self.named_parameters():
            parameter.copy_(_exact(parameter.shape, 0, tensor_key(name)) / 8)

    def forward(self, gradients: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros(())
        for name, module in self.named_children():
            own = {key.partition(".")[2]: value for key, value in gradients.items() if key.partition(".")[0] == name}
            total = total + module(own)
        return total


def _exact(shape: torch.Size, seed: int, key: int) -> Tensor:
    """Multiples of 1/64 in [-1, 1]."""
    return torch.randint(-64, 65, shape, generator=generator(seed, 0, key)) / 64


SHAPES = {name: parameter.shape for name, parameter in GivenModel().named_parameters()}


WARMUP = -1
"""A step whose gradients are zero but for one row of one tensor of each group, which the first rank has."""
FIRST = ("embedding.weight", "up.weight", "odd.bias")


def gradients_of(step: int, rank: int) -> dict[str, Tensor]:
    """One rank's gradients at a step."""
    gradients = {
        name: _exact(shape, 3 + 2 * step + rank, tensor_key(name)) / 2 ** (3 + index)
        for index, (name, shape) in enumerate(SHAPES.items())
    }
    if step == WARMUP:
        for name, gradient in gradients.items():
            gradient[1 if name in FIRST else 0 :] = 0
    return gradients


def mean_gradients(step: int) -> dict[str, Tensor]:
    """Their mean over two ranks."""
    first, second = gradients_of(step, 0), gradients_of(step, 1)
    return {name: (first[name] + second[name]) / 2 for name in SHAPES}


@dataclass(frozen=True)
class Case:
    """An optimizer with its settings, some for tensors by name; `is_exact` where no sum over ranks enters the step."""

    kind: type[torch.optim.Optimizer]
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_exact: bool = True
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def optimizer(self, model: nn.Module, **changes: Any) -> torch.optim.Optimizer:
        groups = build_param_groups(
            model, optimizer=self.kind.__name__.lower(), weight_decay=0.1, min_split_numel=0, min_split_dim=0,
            overrides=self.overrides,
        )  # fmt: skip
        return self.kind(groups, **{"lr": 1e-2, "seed": 5} | self.settings | changes)


CASES = {
    "adabelief": Case(AdaBelief),
    "adabelief_bounded": Case(AdaBelief, {"max_update_rms": 0.5}, is_exact=False),
    "adabelief_bfloat16": Case(AdaBelief, {"state_dtype": "bfloat16"}),
    # of the others, blocks of 256 elements would not be whole rows
    "adabelief_8bit": Case(AdaBelief, overrides={"wide": {"state_dtype": "8bit"}}),
    "frugal_chunk": Case(Frugal, {"selector": "chunk", "update_gap": GAP}),
    "frugal_chunk_8bit": Case(Frugal, {"selector": "chunk", "update_gap": GAP, "state_dtype": "8bit"}),
    "frugal_columns": Case(Frugal, {"selector": "columns", "update_gap": GAP}),
    "frugal_columns_bfloat16": Case(Frugal, {"selector": "columns", "update_gap": GAP, "state_dtype": "bfloat16"}),
    "frugal_columns_project": Case(Frugal, {"selector": "columns", "update_gap": GAP, "state_mode": "project"}),
    "frugal_block_budget": Case(Frugal, {"selector": "block_budget", "update_gap": GAP, "density": 0.4}),
    "frugal_rows": Case(Frugal, {"selector": "rows", "update_gap": GAP}),
    "frugal_svd": Case(Frugal, {"selector": "svd", "update_gap": GAP, "state_mode": "project"}),
    "frugal_randk": Case(Frugal, {"selector": "randk", "update_gap": GAP}),
    "auon": Case(AuON, {}, is_exact=False),
    "auon_exact_brake": Case(AuON, {"brake": "exact"}, is_exact=False),
    "auon_repository": Case(AuON, {"mode": "repository"}, is_exact=False),
    "auon_hybrid": Case(AuON, {"ns_steps": 1}, is_exact=False),
}  # fmt: skip


def trajectory(
    case: Case, steps: Sequence[int] = range(STEPS), model: nn.Module | None = None, **changes: Any
) -> dict[str, Tensor]:
    """The weights after `steps` of one process."""
    model = model or GivenModel()
    optimizer = case.optimizer(model, **changes)
    for step in steps:
        warm_up(optimizer, step)
        step_whole(model, optimizer, step)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def warm_up(optimizer: torch.optim.Optimizer, step: int) -> None:
    """The learning rate of a step: 0 in the warm-up, as schedules begin."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if step == WARMUP else 1e-2


def step_whole(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One step of one process."""
    gradients = mean_gradients(step)
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].to(parameter.dtype)
    optimizer.step()


def chunk_trajectory(case: Case, cuts: Mapping[str, Sequence[tuple[int, int]]]) -> dict[str, Tensor]:
    """The weights after all steps of FRUGAL with the selector chunk, by formulas over masks of whole tensors.

    `cuts`: start and length of each tensor's pieces; each has a chunk of its own.
    """
    weights = {name: parameter.detach() for name, parameter in GivenModel().named_parameters()}
    groups = case.optimizer(GivenModel()).param_groups
    settings = {name: group for group in groups for name in group["param_names"]}
    first, second = ({name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(2))
    for step in range(STEPS):
        for name, grad in mean_gradients(step).items():
            group, weight = settings[name], weights[name]
            is_split = group["role"] == "split"
            epoch, age = (step // GAP, step % GAP + 1) if is_split else (0, step + 1)
            mask = torch.ones(weight.numel(), dtype=torch.bool)
            for start, numel in cuts[name] if is_split else ():
                key = mix(tensor_key(name), start)
                offset, length = choose_chunk(numel, group["density"], group["seed"], epoch, key)
                mask[start : start + numel] = torch.isin(torch.arange(numel), (offset + torch.arange(length)) % numel)
            if age == 1:
                first[name].zero_()
                second[name].zero_()
            beta1, beta2 = group["betas"]
            first[name].lerp_(grad, 1 - beta1)
            second[name].lerp_(grad.square(), 1 - beta2)
            root = (second[name] / (1 - beta2**age)).sqrt() + group["eps"]
            update = torch.where(mask.view(grad.shape), first[name] / (1 - beta1**age) / root, grad.sign())
            weights[name] = weight * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * update
    return weights


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, is_exact: bool) -> None:
    """Bitwise, or to a millionth of each value or of the learning rate."""
    tolerance = {"rtol": 0.0, "atol": 0.0} if is_exact else {"rtol": 1e-6, "atol": 1e-8}
    assert actual.keys() == expected.keys(), what
    for name, tensor in actual.items():
        torch.testing.assert_close(
            tensor.detach(), expected[name], **tolerance, msg=lambda text, name=name: f"{what}, {name}: {text}"
        )


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the state on this rank."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(getattr(tensor, "_local_tensor", tensor).nbytes for tensor in tensors)

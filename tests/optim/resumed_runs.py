"""Training that stops and goes on: in this process, or as a program that goes on with what another one saved.

`python -m tests.optim.resumed_runs FOLDER` takes `STEPS` more steps from FOLDER/CASE.pt, for each case, and writes
FOLDER/CASE.resumed.pt.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.optim import AdaBelief, AuON, Frugal

STEPS, GAP = 3, 2
"""A new choice of FRUGAL's falls within the first steps, and within those after them."""
SHAPES = {"wide": (70, 65), "tall": (131, 40), "square": (48, 48), "vector": (300,)}
PRECISIONS: dict[str, tuple[torch.dtype, dict[str, str]]] = {
    "float32": (torch.float32, {}),
    "sr": (torch.bfloat16, {"param_precision": "sr", "state_dtype": "bfloat16"}),
    "split16": (torch.bfloat16, {"param_precision": "split16"}),
    "8bit": (torch.float32, {"state_dtype": "8bit"}),
}


@dataclass(frozen=True)
class Case:
    kind: type[torch.optim.Optimizer]
    settings: Mapping[str, Any] = field(default_factory=dict)
    role: str = "full"


FRUGAL = {"density": 0.4, "update_gap": GAP, "state_free_lr_scale": 0.5}
SELECTORS = ("block", "block_budget", "chunk", "columns", "rows", "randk", "svd", "random")
RULES = {
    "adabelief": Case(AdaBelief),
    "adabelief-amsgrad": Case(AdaBelief, {"amsgrad": True}),
    "adabelief-bounded": Case(AdaBelief, {"max_update_rms": 0.5}),
    **{f"frugal-{each}": Case(Frugal, FRUGAL | {"selector": each}, "split") for each in SELECTORS},
    "frugal-columns-project": Case(Frugal, FRUGAL | {"selector": "columns", "state_mode": "project"}, "split"),
    "frugal-columns-keep": Case(Frugal, FRUGAL | {"selector": "columns", "state_mode": "keep"}, "split"),
    "frugal-block-project": Case(Frugal, FRUGAL | {"selector": "block", "state_mode": "project"}, "split"),
    "frugal-svd-project": Case(Frugal, FRUGAL | {"selector": "svd", "state_mode": "project"}, "split"),
    "frugal-lion": Case(Frugal, FRUGAL | {"state_full_rule": "lion"}, "split"),
    "frugal-falling": Case(Frugal, FRUGAL | {"selector": "rows", "density_end": 0.1, "density_epochs": 3}, "split"),
    "auon": Case(AuON, {}, "matrix"),
    "auon-hybrid": Case(AuON, {"ns_steps": 1}, "matrix"),
}
CASES = {f"{rule}-{precision}": (case, precision) for rule, case in RULES.items() for precision in PRECISIONS}


class Run:
    """Parameters with given gradients, and their optimizer."""

    def __init__(self, name: str, **changes: Any) -> None:
        case, precision = CASES[name]
        dtype, settings = PRECISIONS[precision]
        generator = torch.Generator().manual_seed(0)
        self.parameters = {
            key: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for key, shape in SHAPES.items()
        }
        matrices = [(key, parameter) for key, parameter in self.parameters.items() if parameter.ndim == 2]
        groups = [
            {"params": matrices, "role": case.role},
            {"params": [("vector", self.parameters["vector"])], "role": "full", "weight_decay": 0.0},
        ]
        shared = {"lr": 1e-2, "weight_decay": 0.1, "seed": 7, "impl": "foreach"}
        self.optimizer = case.kind(groups, **shared | settings | dict(case.settings) | changes)

    def train(self, first: int, steps: int) -> "Run":
        for step in range(first, first + steps):
            generator = torch.Generator().manual_seed(100 + step)
            for parameter in self.parameters.values():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            self.optimizer.step()
        return self

    def saved(self) -> dict[str, Any]:
        return {"weights": self.weights(), "optimizer": self.optimizer.state_dict()}

    def load(self, saved: Mapping[str, Any]) -> "Run":
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                parameter.copy_(saved["weights"][key])
        self.optimizer.load_state_dict(saved["optimizer"])
        return self

    def weights(self) -> dict[str, Tensor]:
        return {key: parameter.detach() for key, parameter in self.parameters.items()}


def assert_same_run(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Weights and state bit for bit, groups as they are."""
    assert one["weights"].keys() == other["weights"].keys()
    for key, weight in one["weights"].items():
        assert weight.dtype == other["weights"][key].dtype and torch.equal(weight, other["weights"][key]), key
    assert one["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]
    states, others = one["optimizer"]["state"], other["optimizer"]["state"]
    assert states.keys() == others.keys()
    for index, state in states.items():
        assert state.keys() == others[index].keys(), index
        for name, value in state.items():
            assert value.dtype == others[index][name].dtype, (index, name)
            assert torch.equal(value, others[index][name]), (index, name)


def main(folder: Path) -> None:
    for name in CASES:
        saved = torch.load(folder / f"{name}.pt", weights_only=True)
        torch.save(Run(name).load(saved).train(STEPS, STEPS).saved(), folder / f"{name}.resumed.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

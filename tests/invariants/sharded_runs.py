"""Three optimizer steps of any trainer on the same samples, with the model whole or sharded, and the weights then."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rlhf.config.sharding import Sharding
from rlhf.data.types import Sample
from rlhf.trainers.build_critic import make_critic
from rlhf.trainers.capo import CurvatureMasked
from rlhf.trainers.grpo import PolicyGradient
from rlhf.trainers.logit_matching import follow_critic
from rlhf.trainers.ppo import ActorCritic
from rlhf.trainers.vpo import ValueIncentivised
from rlhf.training.guards import NonFiniteGuard
from rlhf.training.launch_checks import start_accelerator
from rlhf.training.learner import Learner
from rlhf.training.weights.build import load_frozen_policy, load_trained_policy
from tests.invariants.capo_step import capo_config
from tests.invariants.one_step import one_step_config
from tests.invariants.ppo_step import ppo_config
from tests.invariants.vpo_update import groups_with_references, vpo_config
from tests.tiny_runs import make_samples
from tests.trainers.tiny_critics import loop_config, optimistic_config

STEPS = 3
UNEVEN_SHARES = (slice(0, 3), slice(3, 8))
"""Of eight prompts: the ranks have other numbers of micro-batches."""
EPS = 1e-6
"""Well above what sums of gradients differ by where they are added in another order, which CPUs choose by kind: an
optimizer that divides by the gradient's own size makes a whole step of a gradient that is nothing but rounding."""
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"type": "adamw", "lr": 1e-3, "eps": EPS},
    # added to the stored moment at every step
    "adabelief": {"type": "adabelief", "lr": 1e-3, "eps": EPS**2 * (1 - 0.999)},
    "auon": {"type": "auon", "lr": 1e-3, "eps": EPS},
    # bfloat16 moments are rounded by draws that the last bit of a gradient turns
    "frugal": {"type": "frugal", "lr": 1e-3, "selector": "columns", "update_gap": 2, "state_dtype": "float32"},
}
LORA = {"rank": 4, "alpha": 8.0}


@dataclass(frozen=True)
class Run:
    """A cell of the matrix. `settings`: of the algorithm's section."""

    trainer: str
    optimizer: str = "adamw"
    lora: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"

    @property
    def name(self) -> str:
        precision = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.trainer} {self.optimizer} {'lora' if self.lora else 'full'}{precision}"


MATRIX = [
    *(Run("grpo", optimizer, lora) for optimizer in OPTIMIZERS for lora in (False, True)),
    *(Run(trainer, lora=lora) for trainer in ("capo", "ppo", "vpo", "optimistic", "loop") for lora in (False, True)),
]

LOW_PRECISION = [Run("grpo", dtype="bfloat16")]
"""Not with one process's weights to the last bit, as sums are rounded."""


def weights_after(run: Run, model: str, folder: Path, sharding: Sharding = "ddp", prompts: slice = slice(0, 8)) -> (
    dict[str, torch.Tensor]
):
    """The policy's weights by HF name after the steps; `prompts`: this rank's. Collective."""
    learner, algorithm = make(run, model, folder, sharding)
    for step in range(1, STEPS + 1):
        samples = samples_of(run, prompts)
        learner.update(algorithm.prepare(samples, learner), algorithm, step)
    return {name: tensor.clone() for name, tensor in learner.policy_weights()}


def make(run: Run, model: str, folder: Path, sharding: Sharding = "ddp") -> tuple[Learner, Any]:
    """A learner and its algorithm."""
    config, build = BUILDERS[run.trainer](model, run)
    sections = {"optimizer": OPTIMIZERS[run.optimizer], "model": {"path": model, "dtype": run.dtype}}
    if run.lora:
        sections["model"]["lora"] = LORA
    config = type(config).model_validate(config.model_dump() | sections)
    accelerator = start_accelerator(sharding)
    policy = load_trained_policy(config.model, accelerator, sharding)
    reference = None
    if config.algorithm.needs_reference_model and not run.lora:
        reference = load_frozen_policy(config.model, accelerator, sharding, temperature=1.0)
    critic = make_critic(config, policy, reference, accelerator, sharding=sharding)
    guard = NonFiniteGuard(config.guards, folder)
    return Learner(policy, config, accelerator, guard, reference, critic, sharding), build(config.algorithm, 4)


def samples_of(run: Run, prompts: slice) -> list[Sample]:
    """The samples of these of the eight prompts."""
    if run.trainer == "vpo":
        return [sample for group in groups_with_references()[prompts] for sample in group]
    return make_samples()[4 * prompts.start : 4 * prompts.stop]


def _grpo(model: str, run: Run) -> tuple[Any, Callable]:
    return one_step_config(model, "grpo", 64, "packed", kl={"coefficient": 0.1}, **run.settings), PolicyGradient


def _capo(model: str, run: Run) -> tuple[Any, Callable]:
    return capo_config(model, "capo", 64, **run.settings), CurvatureMasked


def _ppo(model: str, run: Run) -> tuple[Any, Callable]:
    return ppo_config(model, 64, {"trunk": "policy" if run.lora else "separate"}, **run.settings), ActorCritic


def _vpo(model: str, run: Run) -> tuple[Any, Callable]:
    return vpo_config(model, 64, {"calibration": "ref", "alpha": 0.5} | run.settings), ValueIncentivised


def _optimistic(model: str, run: Run) -> tuple[Any, Callable]:
    return optimistic_config(model, algorithm=run.settings), follow_critic


def _loop(model: str, run: Run) -> tuple[Any, Callable]:
    return loop_config(model, algorithm=run.settings), follow_critic


BUILDERS = {"grpo": _grpo, "capo": _capo, "ppo": _ppo, "vpo": _vpo, "optimistic": _optimistic, "loop": _loop}

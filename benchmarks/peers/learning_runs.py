"""One run of a learning comparison, supervised or GRPO, in the terms that both are compared in."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from peers.recipe_runs import ROOT, finished_run
from peers.sft_runs import BATCH, HELD_OUT, finished_sft
from rlhf.config.model_shapes import find_shape
from rlhf.config.optimizer import OptimizerConfig
from rlhf.config.optimizer_memory import state_bytes, trained_tensors


@dataclass(frozen=True)
class Outcome:
    """`to_minimise` is what optimizers are compared by (`measure` in words), `right` the share of held-out problems
    solved, `curve` over steps."""

    optimizer: dict[str, Any]
    to_minimise: float
    measure: str
    right: float
    curve: list[float]
    curve_label: str
    bytes_per_parameter: float
    step_seconds: float
    about: str

    @property
    def told(self) -> str:
        return f"{self.measure} {self.to_minimise:.4f}, right {100 * self.right:.1f} %, {self.step_seconds:.2f} s/step"


def sft_outcome(optimizer: dict[str, Any], seed: int, steps: int, model: str, folder: Path) -> Outcome:
    """Supervised fine-tuning on sums."""
    run = finished_sft(optimizer, seed, steps, model, folder)
    about = f"a + b and a - b below 100, {BATCH} a step, cross-entropy of answers; {HELD_OUT} held-out sums"
    return Outcome(
        optimizer, run.held_out_loss, "held-out loss", run.exact, run.losses, "training loss, running mean",
        run.bytes_per_parameter, run.step_seconds, about,
    )  # fmt: skip


def grpo_outcome(
    optimizer: dict[str, Any], seed: int, steps: int, model: str, folder: Path, dtype: str = "float32"
) -> Outcome:
    """The demo of GRPO, by its held-out error. `dtype` is the policy's; masters and gradients are float32."""
    slug = "-".join(str(value) for value in optimizer.values())
    settings = {f"optimizer.{name}": value for name, value in optimizer.items()}
    settings |= {"run.seed": seed, "batch.steps": steps, "model.path": model, "model.dtype": dtype,
                 "checkpoint.export": "false", "engine.type": "transformers"}  # fmt: skip
    config = ROOT / "configs" / "grpo" / "demo_arithmetic.yaml"
    run = finished_run("grpo", config, folder, f"grpo-{slug}-{dtype}-steps{steps}-seed{seed}", settings)
    metrics, evaluations = run.read_metrics(), run.read_evaluations()
    rewards = [float(record["reward/mean"]) for record in metrics]
    right = float(evaluations[-1]["accuracy"])
    return Outcome(
        optimizer, 1 - right, "held-out error", right, rewards, "mean reward, running mean",
        8 + (2 if dtype == "bfloat16" else 0) + _state_per_parameter(optimizer, model),
        statistics.median(float(record["time/step"]) for record in metrics),
        f"sums below 50, 8 prompts x 8 completions a step, the policy in {dtype}; 200 held-out sums",
    )  # fmt: skip


def _state_per_parameter(optimizer: Mapping[str, Any], model: str) -> float:
    tensors = trained_tensors(find_shape(model))
    config = TypeAdapter(OptimizerConfig).validate_python(optimizer)
    return state_bytes(config, tensors) / sum(tensor.count * tensor.numel for tensor in tensors)

"""A run that was stopped half-way and started again ends as one that was not: metrics, and weights to the bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.config.loading import to_yaml
from rlhf.config.recipe import RecipeConfig
from rlhf.training.checkpoint import list_checkpoints
from rlhf.training.metrics import deterministic
from tests.processes import ROOT, output_of, start

STEPS = 4


def run_alone(*command: str | Path) -> None:
    """One process; it must succeed."""
    output_of(start(*command))


def check_restart(
    recipe: str, config: RecipeConfig, folder: Path, launch: Callable[..., None] = run_alone,
    moves: tuple[str, float] = ("gradient/norm", 0.0), minibatches: int = 2,
) -> None:  # fmt: skip
    """`config`: of any number of steps; two minibatches, so that their order has to be the same too. `moves`: a metric
    that is above this number where the policy has moved."""

    def run(name: str, steps: int) -> None:
        batch = {"steps": steps, "prompts_per_step": 4, "minibatches": minibatches, "tokens_per_micro_batch": 128}
        places = {"run": config.run.model_copy(update={"folder": str(folder), "name": name})}
        changed = config.model_copy(update=places | {"batch": config.batch.model_copy(update=batch)})
        file = folder / f"{name}.yaml"
        file.write_text(to_yaml(changed))
        launch(ROOT / "recipes" / f"{recipe}.py", "--config", file)

    def read(name: str) -> tuple[list[dict[str, Any]], bytes]:
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        weights = list_checkpoints(folder / name / "checkpoints")[-1] / "weights.safetensors"
        return [deterministic(json.loads(line)) for line in lines], weights.read_bytes()

    run("straight", STEPS)
    run("stopped", STEPS // 2)
    run("stopped", STEPS)
    assert read("stopped") == read("straight")
    name, least = moves
    assert any(record.get(name, 0) > least for record in read("straight")[0]), "the policy has moved"

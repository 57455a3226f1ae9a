"""`--dry-run`: the resolved configuration, the batch table and the memory plan, in under two seconds and without a
model."""

import math
import os
import shutil
from typing import Any, Literal

from rlhf.config.division import Division
from rlhf.config.lengths import most_completion_tokens
from rlhf.config.loading import to_yaml
from rlhf.config.memory_plan import memory_plan
from rlhf.config.model_shapes import UnknownShape, find_shape
from rlhf.config.rules import remarks


def print_dry_run(config: Any, division: Division, device: str | None = None) -> None:
    """Print everything that can be known before a model is loaded, for a launch with this division. All but the YAML
    is in comments, so the output is itself a config."""
    print(to_yaml(config))
    if not hasattr(config, "batch"):
        return
    for title, body in (
        ("Batches", batch_table(config, division.ranks)),
        ("Memory", memory_text(config, division, device)),
        ("Remarks", "\n".join(remarks(config))),
    ):
        if body:
            print("\n".join(f"# {line}".rstrip() for line in [f"--- {title} ---", *body.splitlines(), ""]))


def batch_table(config: Any, world_size: int) -> str:
    """Prompts, samples and the most tokens in a step, in a rank's share, in an optimizer step and in a micro-batch."""
    batch, group = config.batch, config.completions_per_prompt
    prompts_each = {
        "rollout step, all ranks": batch.prompts_per_step,
        "rollout step, one rank": batch.prompts_per_step // world_size,
        "optimizer step, all ranks": batch.prompts_per_step // batch.minibatches,
        "optimizer step, one rank": batch.prompts_per_step // (batch.minibatches * world_size),
    }
    lines = [f"{'':<28}{'prompts':>9}{'samples':>9}{'completion tokens':>20}{'trained-on tokens':>20}"]
    for name, prompts in prompts_each.items():
        completion = prompts * group * most_completion_tokens(config)
        lines.append(
            f"{name:<28}{prompts:>9,}{prompts * group:>9,}{completion:>20,}{_forward_tokens(config, prompts):>20,}"
        )
    budget = batch.tokens_per_micro_batch
    micro_batches = math.ceil(_forward_tokens(config, prompts_each["optimizer step, one rank"]) / budget)
    optimizer_steps = batch.minibatches * batch.epochs
    kind = (
        "each prompt once for all its completions"
        if config.model.attention == "packed"
        else "each prompt with each completion"
    )
    lines += [
        f"token columns are upper limits (max_prompt_tokens, max_tokens{_of_dialogues(config)}); trained on: {kind}",
        f"micro-batches per optimizer step and rank: at most about {micro_batches:,} of {budget:,} tokens",
        f"optimizer steps per rollout step: {batch.minibatches} minibatches x {batch.epochs} epochs = "
        f"{optimizer_steps}",
        f"whole run: {batch.steps:,} rollout steps, {batch.steps * optimizer_steps:,} optimizer steps, "
        f"{batch.steps * batch.prompts_per_step:,} prompts, {batch.steps * batch.prompts_per_step * group:,} samples, "
        f"{world_size} rank{'s' if world_size > 1 else ''}",
    ]
    return "\n".join(lines)


def memory_text(config: Any, division: Division, device: str | None = None) -> str:
    """The rendered memory plan, or why there is none."""
    try:
        shape = find_shape(config.model.path, config.model.revision)
    except UnknownShape as error:
        return f"unknown: {error}"
    device = device or planned_device()
    header = f"{config.model.path} on {device}, {division}; an estimate"
    return f"{header}\n{memory_plan(config, shape, division, device).render()}"


def planned_device() -> Literal["cpu", "cuda"]:
    """Where the run would take place, told without torch."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    is_cpu_asked = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    return "cuda" if shutil.which("nvidia-smi") and not is_hidden and not is_cpu_asked else "cpu"


def _of_dialogues(config: Any) -> str:
    environment = config.environment
    return "" if environment is None else f" + max_reply_tokens for {environment.turns} turns"


def _forward_tokens(config: Any, prompts: int) -> int:
    """Tokens that the learner forwards for `prompts` prompts, at most."""
    prompt, completion, group = (
        config.data.max_prompt_tokens,
        most_completion_tokens(config),
        config.completions_per_prompt,
    )
    if config.model.attention == "packed":
        return prompts * (prompt + group * completion)
    return prompts * group * (prompt + completion)

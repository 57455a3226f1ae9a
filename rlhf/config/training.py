"""How a run is laid out: batches, guards, checkpoints, tracking."""

from typing import Literal

from pydantic import Field

from rlhf.config.section import Section


class RunConfig(Section):
    """Name, place and seed of a run."""

    name: str = Field("run", pattern=r"^[\w.\-]+$")
    """The run's folder is `<folder>/<name>`."""
    folder: str = "runs"
    """Where runs are kept."""
    seed: int = Field(0, ge=0)
    """Every random draw is a function of this seed, the step, the prompt's id and the sample's index."""
    resume: Literal["auto", "never"] = "auto"
    """`auto`: continue from the newest whole checkpoint of this run, if there is one. `never`: refuse to write into
    a used folder."""


class BatchConfig(Section):
    """What one step consists of."""

    steps: int = Field(100, ge=1)
    """Rollout batches to learn from."""
    prompts_per_step: int = Field(32, ge=1)
    """Prompts per rollout batch, over all ranks."""
    minibatches: int = Field(1, ge=1)
    """Optimizer steps per pass over a rollout batch; must divide prompts_per_step."""
    epochs: int = Field(1, ge=1)
    """Passes over a rollout batch. More than one needs a clipped loss."""
    tokens_per_micro_batch: int = Field(8192, ge=1)
    """Token budget of one forward-backward on one rank. Changes memory and speed, never the gradient."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping by global norm."""
    staleness: int = Field(0, ge=0)
    """How many steps old the weights are that make a batch: with 1, the next batch is generated while this one is
    learned. Needs algorithm.mismatch; more than 1 is for experiments, and no faster (docs/asynchronous_generation.md).
    """


class GuardConfig(Section):
    """When a run stops rather than going on wrong."""

    max_skipped_steps: int = Field(3, ge=1)
    """Optimizer steps in a row that may be skipped for a non-finite loss or gradient before the run stops."""
    ratio_tolerance: float = Field(0.1, gt=0)
    """Largest |mean ratio - 1| between learner and engine at the first update after a sync. bf16 engines stay under
    0.02."""
    max_ungradable_share: float = Field(0.5, ge=0, le=1)
    """Stop when more than this share of a step's completions is ungradable or timed out."""


class CheckpointConfig(Section):
    """When and how much is saved."""

    every: int = Field(0, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    keep_last: int = Field(2, ge=1)
    """Newest checkpoints to keep."""
    keep_best: str | None = None
    """A metric of metrics.jsonl, or of an evaluation, e.g. `evaluation/held_out/accuracy`, `evaluation/gsm8k/pass@4`:
    the checkpoint with its highest value is kept too."""
    export: bool = True
    """At the end write `<run>/model`, which `AutoModelForCausalLM.from_pretrained` loads."""


class TrackingConfig(Section):
    """Where metrics go besides `metrics.jsonl`, which is always written."""

    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """Trackers, through Accelerate."""
    project: str = "rlhf"
    """Project name for the trackers."""
    completions_per_step: int = Field(2, ge=0)
    """Completions shown in the terminal each time they are shown."""
    show_completions_every: int = Field(10, ge=0)
    """Steps between completion tables in the terminal; 0 is off."""

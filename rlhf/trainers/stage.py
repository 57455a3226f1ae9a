"""What TRL's trainers need to run as a stage of ours: our optimizers, schedule, order of rows, run folder, resume."""

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import yaml
from accelerate import PartialState
from peft import PeftModel
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from rlhf.config.loading import to_dict, to_yaml
from rlhf.config.optimizer import OptimizerConfig, ScheduleConfig
from rlhf.config.sharding import sharding_from_environment, sharding_problems
from rlhf.config.sources import ConfigError
from rlhf.config.stage import StageConfig
from rlhf.data.order import PromptOrder
from rlhf.data.seeds import derive_seed
from rlhf.optim.parameter_groups import Overrides
from rlhf.training.checkpoint import CheckpointError, config_differences
from rlhf.training.environment import describe_environment
from rlhf.training.launch_checks import check_launch, cpu_ranks
from rlhf.training.optimizers import build_optimizer, keeps_master_copies
from rlhf.training.run_folder import RunFolder
from rlhf.training.schedule import learning_rate_factor

LINES = 20  # printed of a run
LAST_FILE = "trainer_state.json"  # what transformers writes last but for the random state


class NonFiniteLoss(FloatingPointError):
    """A step had a loss or gradient that is no number; the message names the step."""


class SectionOptimizer:
    """Makes the optimizer of a configuration; what `optimizer_cls_and_kwargs` calls a factory."""

    def __call__(
        self, model: nn.Module, section: OptimizerConfig, seed: int, overrides: Overrides | None = None
    ) -> torch.optim.Optimizer:
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        return build_optimizer(section, model, trainable, seed, is_guarded=False, overrides=overrides)


class OurSchedule:
    """Mixed into a trainer, in front: the learning rate follows our `schedule` section.

    transformers has no linear decay to a share of the peak, and none of its names mean what ours mean.
    """

    schedule: ScheduleConfig

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        if self.lr_scheduler is None:
            factor = partial(learning_rate_factor, total_updates=num_training_steps, config=self.schedule)
            self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler


class Recorder(TrainerCallback):
    """Writes metrics.jsonl, prints some of its lines, and stops the run at a loss that is no number."""

    def __init__(self, folder: RunFolder, steps: int) -> None:
        self.folder, self.every = folder, max(1, steps // LINES)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero and state.global_step:
            self.folder.truncate_after(state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any) -> None:
        if "loss" not in logs:
            return  # the summary at the end
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise NonFiniteLoss(
                    f"step {state.global_step}: {name} is {logs[name]}. Nothing is saved of this step; lower "
                    "optimizer.lr, or look at the rows of this step"
                )
        if state.is_world_process_zero:
            self.folder.append_metrics(state.global_step, {k: v for k, v in logs.items() if k != "epoch"})
            if state.global_step % self.every == 0 or state.global_step == state.max_steps:
                shown = {name: logs[name] for name in ("loss", "accuracy", "mean_token_accuracy") if name in logs}
                text = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
                print(f"step {state.global_step:>5} of {state.max_steps}  {text}", flush=True)


def stage_arguments(config: StageConfig, folder: Path) -> dict[str, Any]:
    """Fields of SFTConfig and RewardConfig. Raises ConfigError where the ranks cannot share a step's rows."""
    training, world_size = config.training, PartialState().num_processes
    rows_at_once = training.rows_per_micro_batch * world_size
    if training.rows_per_step % rows_at_once:
        raise ConfigError([
            f"training.rows_per_step = {training.rows_per_step} is not a multiple of training.rows_per_micro_batch x "
            f"{world_size} ranks = {rows_at_once}: change one of them"
        ])  # fmt: skip
    return dict(
        output_dir=str(folder / "checkpoints"), run_name=config.run.name, seed=config.run.seed,
        max_steps=training.steps, max_grad_norm=training.max_grad_norm,
        max_length=None,  # longer rows are left out before
        per_device_train_batch_size=training.rows_per_micro_batch,
        gradient_accumulation_steps=training.rows_per_step // rows_at_once,
        gradient_checkpointing=config.model.gradient_checkpointing, bf16=config.model.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(), train_sampling_strategy="sequential",
        logging_steps=1, logging_nan_inf_filter=False, disable_tqdm=True, report_to=list(config.trackers) or "none",
        save_strategy="steps" if config.checkpoint.every else "no", save_steps=max(1, config.checkpoint.every),
        save_total_limit=config.checkpoint.keep_last,
    )  # fmt: skip


def quieten(trainer: Trainer) -> None:
    """`Recorder` says what is to be said."""
    trainer.remove_callback(PrinterCallback)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()


def open_folder(config: StageConfig) -> tuple[RunFolder, str | None]:
    """The run's folder, made where it is missing, and the newest whole checkpoint in it.

    Raises CheckpointError where that was made with other settings, FileExistsError under `run.resume: never`,
    LaunchError and ConfigError for a launch in which the ranks would not train one model, or would divide it.
    """
    sharding = sharding_from_environment(os.environ)
    if problems := sharding_problems(config, sharding):
        raise ConfigError(problems)
    state = PartialState(**cpu_ranks())
    check_launch(state, sharding)
    folder = RunFolder(Path(config.run.folder) / config.run.name)
    checkpoint = newest_whole(folder.checkpoints)
    if checkpoint is not None and folder.config.exists():
        saved = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
        if differences := config_differences(saved, to_dict(config)):
            raise CheckpointError(
                f"{checkpoint} was made with other settings:\n" + "\n".join(differences)
                + "\nGo back to those settings, or choose another run.name"
            )  # fmt: skip
    state.wait_for_everyone()
    if state.is_main_process:
        folder.create(to_yaml(config), resume=config.run.resume == "auto")
        folder.write_environment(describe_environment())
        if checkpoint is None:
            folder.truncate_after(-1)
        else:
            print(f"resuming {folder.path} from {checkpoint.name}")
    state.wait_for_everyone()
    return folder, None if checkpoint is None else str(checkpoint)


def newest_whole(checkpoints: Path) -> Path | None:
    """The newest `checkpoint-N` that was written to its end; a run killed while saving leaves a part of one."""
    found = [path.parent for path in checkpoints.glob(f"checkpoint-*/{LAST_FILE}")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def ordered(count: int, config: StageConfig) -> list[int]:
    """Index of the row at each place of a run: a function of the seed, so that resuming needs no luck."""
    order = PromptOrder(count, derive_seed(config.run.seed, "order"))
    return [order(position) for position in range(config.training.steps * config.training.rows_per_step)]


def training_dtype(config: StageConfig) -> torch.dtype:
    """Of the weights: float32 masters under autocast, but for adapters' bases and optimizers that need no masters."""
    has_masters = config.model.lora is None and keeps_master_copies(config.optimizer)
    return torch.float32 if has_masters else getattr(torch, config.model.dtype)


def export(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype, *, head_dtype: torch.dtype
) -> PreTrainedModel:
    """Write a checkpoint of whole weights; adapters are added to their base, once and in float32. Ends the training:
    the model is converted in place. `head_dtype`: of the layers beside the backbone, where they are no part of it."""
    if isinstance(model, PeftModel):
        model = model.float().merge_and_unload()
    backbone = model.base_model
    tied = {id(parameter) for parameter in backbone.parameters()}
    backbone.to(dtype)
    for layer in model.children():
        if layer is not backbone and not any(id(parameter) in tied for parameter in layer.parameters()):
            layer.to(head_dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


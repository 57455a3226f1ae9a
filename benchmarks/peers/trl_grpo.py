"""TRL's GRPOTrainer on a workload: a process that times its own phases and writes what it measured.

    python benchmarks/peers/trl_grpo.py --workload batch-s --variant default --steps 3 --precision float32 \
        --record out.json

Settings are TRL's defaults but for what the workload fixes and what a variant names (`VARIANTS`). Timed by overriding
the trainer's own methods; logging and saving are off.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peers.records import StepRecord
from peers.workloads import (
    MODEL,
    PROMPT_TOKENS,
    REWARDS,
    WORKLOADS,
    Trial,
    dataset_rows,
    prompts_digest,
    question,
)


@dataclass(frozen=True)
class Variant:
    """How TRL is set up where it differs from its defaults."""

    use_vllm: bool = False
    bf16_weights: bool = False
    """In bfloat16 compute, keep the weights in it too: faster, without the float32 master weights of the others."""
    gradient_checkpointing: bool = True
    tuned_malloc: bool = False
    """Run with the allocator settings that our own launcher uses."""


VARIANTS = {
    "default": Variant(),
    "malloc": Variant(tuned_malloc=True),
    "vllm": Variant(use_vllm=True),
    "vllm-tuned": Variant(use_vllm=True, bf16_weights=True, gradient_checkpointing=False, tuned_malloc=True),
}


def command(trial: Trial, variant: str, folder: Path) -> list[str]:
    """What to run; the record comes to lie in `folder`, which must exist."""
    arguments = {
        "workload": trial.workload.name,
        "variant": variant,
        "steps": trial.steps,
        "seed": trial.seed,
        "precision": trial.precision,
    }
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    return [sys.executable, str(Path(__file__).resolve()), *flags, "--record", str(folder / "record.json")]


def read_record(folder: Path) -> tuple[list[StepRecord], dict[str, Any]]:
    """The steps and the settings that the process wrote."""
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return [StepRecord(**step) for step in record["steps"]], record["settings"]


def train(trial: Trial, variant: Variant, micro_batch: int) -> dict[str, Any]:
    """Run the trainer and return the record."""
    import torch
    from datasets import Dataset
    from trl import GRPOConfig

    from rlhf.models.embedded import resolve_model_path

    workload, in_bf16 = trial.workload, trial.precision == "bfloat16"
    micro_batch = min(micro_batch, workload.completions)
    on_cpu = not torch.cuda.is_available()
    if variant.use_vllm and on_cpu:
        from peers.trl_vllm_cpu import adapt_trl_to_cpu

        adapt_trl_to_cpu(trial.precision)
    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            max_steps=trial.steps,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=workload.completions // micro_batch,
            num_generations=workload.generations,
            max_completion_length=workload.max_tokens,
            learning_rate=workload.lr,
            lr_scheduler_type="constant",
            shuffle_dataset=False,
            seed=trial.seed,
            bf16=in_bf16,
            use_cpu=on_cpu,
            use_vllm=variant.use_vllm,
            vllm_max_model_length=PROMPT_TOKENS + workload.max_tokens,
            model_init_kwargs={"dtype": "bfloat16" if in_bf16 and variant.bf16_weights else "float32"},
            gradient_checkpointing=variant.gradient_checkpointing,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
        )
        trainer = timed_trainer(
            model=resolve_model_path(MODEL),
            reward_funcs=REWARDS[workload.reward],
            args=config,
            train_dataset=Dataset.from_list(dataset_rows(trial)),
        )
        trainer.train()
    settings = {
        "weights": str(next(trainer.model.parameters()).dtype).removeprefix("torch."),
        "compute": trial.precision,
        "gradient_checkpointing": config.gradient_checkpointing,
        "micro_batch": micro_batch,
        "loss": config.loss_type,
        "threads": torch.get_num_threads(),
    }
    return {"settings": settings, "steps": trainer.records}


def timed_trainer(**arguments: Any) -> Any:
    """A GRPOTrainer whose `records` has one StepRecord, as a dict, for each optimizer step."""
    import torch
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from rlhf.training.timing import PhaseTimer

    timer = PhaseTimer(synchronize_cuda=True)

    def timed(function: Callable, phase: str) -> Callable:
        def call(*positional: Any, **named: Any) -> Any:
            with timer.phase(phase):
                return function(*positional, **named)

        return call

    class StepRecorder(TrainerCallback):
        def __init__(self, trainer: "TimedGRPOTrainer") -> None:
            self.trainer = trainer

        def on_train_begin(self, *positional: Any, optimizer: Any, **named: Any) -> None:
            optimizer.step = timed(optimizer.step, "optimizer")
            timer.reset()

        def on_step_end(self, *positional: Any, **named: Any) -> None:
            self.trainer.finish_step(timer)
            timer.reset()

    class TimedGRPOTrainer(GRPOTrainer):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.records: list[dict[str, Any]] = []
            self._forget_step()
            self.add_callback(StepRecorder(self))
            self.accelerator.backward = timed(self.accelerator.backward, "backward")
            self.accelerator.clip_grad_norm_ = timed(self.accelerator.clip_grad_norm_, "optimizer")
            if self.use_vllm:
                self.vllm_generation.sync_weights = timed(self.vllm_generation.sync_weights, "sync")

        def _forget_step(self) -> None:
            self.sampled_tokens = self.model_tokens = self.trained_tokens = 0
            self.questions: list[str] = []
            self.rewards: list[float] = []

        def finish_step(self, timer: PhaseTimer) -> None:
            seconds = timer.seconds | {"total": timer.metrics()["time/step"]}
            # the push of the weights happens inside the method that generates
            seconds["generate"] -= seconds.get("sync", 0.0)
            mean_reward = sum(self.rewards) / len(self.rewards)
            digest = prompts_digest(self.questions)
            self.records.append(
                dict(
                    seconds=seconds,
                    sampled_tokens=self.sampled_tokens,
                    model_tokens=self.model_tokens,
                    trained_tokens=self.trained_tokens,
                    reward=mean_reward,
                    prompts=digest,
                )
            )
            self._forget_step()

        def _generate_single_turn(self, *positional: Any, **named: Any) -> Any:
            with timer.phase("generate"):
                completion_ids, logps = super()._generate_single_turn(*positional, **named)
            self.sampled_tokens += sum(len(ids) for ids in completion_ids)
            return completion_ids, logps

        def _calculate_rewards(self, inputs: Any, prompts: Any, *positional: Any, **named: Any) -> Any:
            with timer.phase("reward"):
                rewards = super()._calculate_rewards(inputs, prompts, *positional, **named)
            self.rewards += rewards[:, 0].tolist()
            self.questions += [question(prompt) for prompt in prompts]
            return rewards

        def _get_per_token_logps_and_entropies(self, *positional: Any, **named: Any) -> Any:
            if torch.is_grad_enabled():
                return super()._get_per_token_logps_and_entropies(*positional, **named)
            with timer.phase("old_logp"):
                return super()._get_per_token_logps_and_entropies(*positional, **named)

        def compute_loss(self, model: Any, inputs: Any, *positional: Any, **named: Any) -> Any:
            self.model_tokens += inputs["prompt_ids"].numel() + inputs["completion_ids"].numel()
            self.trained_tokens += int(inputs["completion_mask"].sum())
            with timer.phase("forward"):
                return super().compute_loss(model, inputs, *positional, **named)

    return TimedGRPOTrainer(**arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--micro-batch", type=int, default=8, help="completions per forward (default: TRL's 8)")
    parser.add_argument("--record", type=Path, required=True)
    arguments = parser.parse_args()
    trial = Trial(WORKLOADS[arguments.workload], arguments.steps, arguments.seed, arguments.precision)
    record = train(trial, VARIANTS[arguments.variant], arguments.micro_batch)
    arguments.record.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()

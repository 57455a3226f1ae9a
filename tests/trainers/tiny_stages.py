"""Configurations of stages that take a second on a tiny model."""

from pathlib import Path
from typing import Any

from rlhf.config.reward_model import RewardModelTrainingConfig
from rlhf.config.sft import SFTConfig


def sections(path: str, folder: Path, name: str) -> dict[str, Any]:
    return {
        "run": {"folder": str(folder), "name": name},
        "model": {"path": path, "dtype": "float32"},
        "data": {"type": "arithmetic", "level": 2, "max_prompt_tokens": 64},
        "training": {"steps": 6, "rows_per_step": 4, "rows_per_micro_batch": 4},
        "optimizer": {"type": "adamw", "lr": 1e-2, "weight_decay": 0.1},
        "schedule": {"type": "linear", "warmup_steps": 2, "final_ratio": 0.1},
    }


def tiny_sft(path: str, folder: Path, name: str = "sft", **changes: Any) -> SFTConfig:
    """`changes` replace whole sections."""
    return SFTConfig.model_validate(sections(path, folder, name) | {"evaluation": {"examples": 8}} | changes)


def tiny_reward_model(path: str, folder: Path, name: str = "rm", **changes: Any) -> RewardModelTrainingConfig:
    return RewardModelTrainingConfig.model_validate(
        sections(path, folder, name) | {"evaluation": {"pairs": 20}} | changes
    )

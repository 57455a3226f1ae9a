"""Configurations of the stages before reinforcement learning: what ships loads, goes round, and is refused early."""

from pathlib import Path

import pytest

from rlhf.config.loading import ConfigError, load_config, parse_config, to_yaml
from rlhf.config.reward_model import RewardModelTrainingConfig
from rlhf.config.rewards import RewardModelConfig, RewardsConfig
from rlhf.config.sft import SFTConfig

ROOT = Path(__file__).parents[2]
SHIPPED = pytest.mark.parametrize(
    ("schema", "file"),
    [(SFTConfig, "configs/sft/demo_arithmetic.yaml"),
     (RewardModelTrainingConfig, "configs/reward_model/demo_arithmetic.yaml")],
)  # fmt: skip


@SHIPPED
def test_a_shipped_file_goes_round(schema, file, written):
    config = parse_config(schema, ["--config", str(ROOT / file)])
    assert parse_config(schema, ["--config", written(to_yaml(config))]) == config


@SHIPPED
def test_a_dry_run_is_a_config(schema, file, capsys, written):
    with pytest.raises(SystemExit) as left:
        load_config(schema, ["--config", str(ROOT / file), "--training.steps", "7", "--dry-run"])
    assert left.value.code == 0
    assert parse_config(schema, ["--config", written(capsys.readouterr().out)]).training.steps == 7


def test_the_second_stage_starts_where_the_first_ends():
    sft = parse_config(SFTConfig, ["--config", str(ROOT / "configs/sft/demo_arithmetic.yaml")])
    file = ROOT / "configs/reward_model/demo_arithmetic.yaml"
    reward_model = parse_config(RewardModelTrainingConfig, ["--config", str(file)])
    assert reward_model.model.path == f"{sft.run.folder}/{sft.run.name}/model"
    assert reward_model.data == sft.data


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training.rows_per_step", "10", "--training.rows_per_micro_batch", "4"], "10 is not a multiple of"),
        (["--data.overlong_prompts", "truncate_left"], "scores whole texts; set it to skip"),
        (["--training.row_per_step", "8"], "rows_per_step"),
        (["--data.type", "countdown"], "data.type"),
    ],
)
def test_contradictions_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(RewardModelTrainingConfig, ["--model.path", "some/model", "--data.type", "arithmetic", *flags])


@SHIPPED
@pytest.mark.parametrize("planned", ["fsdp2:4", "zero2:2", "zero3:8"])
def test_a_plan_in_shards_is_refused(schema, file, planned, capsys):
    with pytest.raises(SystemExit) as left:
        load_config(schema, ["--config", str(ROOT / file), "--dry-run", planned])
    assert left.value.code == 2 and "use configs/accelerate/ddp.yaml" in capsys.readouterr().err


def test_a_reward_model_is_a_reward_function():
    (function,) = RewardsConfig(functions=[{"type": "reward_model", "path": "runs/rm/model", "weight": 2}]).functions
    assert function == RewardModelConfig(path="runs/rm/model", weight=2)

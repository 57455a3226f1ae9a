"""Train a reward model: `accelerate launch recipes/reward_model.py --config configs/reward_model/demo_arithmetic.yaml`.

`--help` lists every setting, `--dry-run` shows the resolved config and loads nothing.
"""

from rlhf.config.loading import load_config
from rlhf.config.reward_model import RewardModelTrainingConfig

if __name__ == "__main__":
    config = load_config(RewardModelTrainingConfig)

    from rlhf.trainers.reward_model import run

    run(config)

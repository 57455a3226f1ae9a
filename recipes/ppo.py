"""Train with PPO and a critic: `accelerate launch recipes/ppo.py --config configs/ppo/demo_arithmetic.yaml`.

`--help` lists every setting, `--dry-run` shows the resolved config, the batch table and the memory plan and loads
nothing. The method and what to watch: docs/ppo.md.
"""

from rlhf.config.loading import load_config
from rlhf.config.ppo import PPOConfig

if __name__ == "__main__":
    config = load_config(PPOConfig)

    from eval.in_training import benchmark_evaluators
    from rlhf.trainers.ppo import ActorCritic
    from rlhf.trainers.run import run

    run(config, benchmark_evaluators, ActorCritic)

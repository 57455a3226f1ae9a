"""Train with GRPO or a relative: `accelerate launch recipes/grpo.py --config configs/grpo/demo_arithmetic.yaml`.

`--help` lists every setting, `--dry-run` shows the resolved config, the batch table and the memory plan and loads
nothing.
"""

from rlhf.config.grpo import GRPOConfig
from rlhf.config.loading import load_config

if __name__ == "__main__":
    config = load_config(GRPOConfig)

    from eval.in_training import benchmark_evaluators
    from rlhf.trainers.run import run

    run(config, benchmark_evaluators)

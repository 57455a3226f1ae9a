"""Train with average-reward LOOP: `accelerate launch recipes/loop.py --config configs/loop/demo_arithmetic.yaml`.

Not leave-one-out PPO, which has the same name: that is `advantage: leave_one_out` of recipes/grpo.py. `--help` lists
every setting, `--dry-run` shows the resolved config, the batch table and the memory plan and loads nothing. The method,
what it departs from and what to watch: docs/loop.md.
"""

from rlhf.config.loading import load_config
from rlhf.config.loop import LOOPConfig

if __name__ == "__main__":
    config = load_config(LOOPConfig)

    from eval.in_training import benchmark_evaluators
    from rlhf.trainers.loop import follow_plan
    from rlhf.trainers.run import run

    run(config, benchmark_evaluators, follow_plan)

"""Train with an optimistic critic that is exchanged rarely (after NORA):
`accelerate launch recipes/optimistic_actor_critic.py --config configs/optimistic_actor_critic/demo_arithmetic.yaml`.

`--help` lists every setting, `--dry-run` shows the resolved config, the batch table and the memory plan and loads
nothing. The method, what it departs from and what to watch: docs/optimistic_actor_critic.md.
"""

from rlhf.config.loading import load_config
from rlhf.config.optimistic_actor_critic import OptimisticActorCriticConfig

if __name__ == "__main__":
    config = load_config(OptimisticActorCriticConfig)

    from eval.in_training import benchmark_evaluators
    from rlhf.trainers.logit_matching import follow_critic
    from rlhf.trainers.run import run

    run(config, benchmark_evaluators, follow_critic)

"""Train with VPO, DPO, IPO or XPO: `accelerate launch recipes/vpo.py --config configs/vpo/demo_online.yaml`.

`--help` lists every setting, `--dry-run` shows the resolved config, the batch table and the memory plan and loads
nothing. The method and what to watch: docs/vpo.md.
"""

from rlhf.config.loading import load_config
from rlhf.config.vpo import VPOConfig

if __name__ == "__main__":
    config = load_config(VPOConfig)

    from eval.in_training import benchmark_evaluators
    from rlhf.trainers.run import run
    from rlhf.trainers.vpo import ValueIncentivised

    run(config, benchmark_evaluators, ValueIncentivised)

"""Train with CAPO: `accelerate launch recipes/capo.py --config configs/capo/demo_arithmetic.yaml`.

`--help` lists every setting, `--dry-run` shows the resolved config, the batch table and the memory plan and loads
nothing. The method and what to watch: docs/capo.md.
"""

from rlhf.config.capo import CAPOConfig
from rlhf.config.loading import load_config

if __name__ == "__main__":
    config = load_config(CAPOConfig)

    from eval.in_training import benchmark_evaluators
    from rlhf.trainers.capo import CurvatureMasked
    from rlhf.trainers.run import run

    run(config, benchmark_evaluators, CurvatureMasked)

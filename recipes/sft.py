"""Supervised fine-tuning: `accelerate launch recipes/sft.py --config configs/sft/demo_arithmetic.yaml`.

`--help` lists every setting, `--dry-run` shows the resolved config and loads nothing.
"""

from rlhf.config.loading import load_config
from rlhf.config.sft import SFTConfig

if __name__ == "__main__":
    config = load_config(SFTConfig)

    from rlhf.trainers.sft import run

    run(config)

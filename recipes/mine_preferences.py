"""Make a preference dataset of a model's own right and wrong completions:

`python recipes/mine_preferences.py --config configs/vpo/mine_arithmetic.yaml`, then `recipes/vpo.py` in mode offline on
the file that it writes. `--help` lists every setting.
"""

from rlhf.config.loading import load_config
from rlhf.config.mining import MiningConfig

if __name__ == "__main__":
    config = load_config(MiningConfig)

    from rlhf.trainers.mining import mine

    mine(config)

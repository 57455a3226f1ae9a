"""TRL's trainers under names that cannot be taken for ours; the one place that imports it."""

from rlhf.config.extras import from_checkout

try:
    from trl import RewardConfig as TRLRewardConfig
    from trl import RewardTrainer as TRLRewardTrainer
    from trl import SFTConfig as TRLSFTConfig
    from trl import SFTTrainer as TRLSFTTrainer
except ImportError as error:
    raise ImportError(
        f"this stage runs on TRL's trainers, which cannot be imported ({error}): {from_checkout('trl')}"
    ) from error

__all__ = ["TRLRewardConfig", "TRLRewardTrainer", "TRLSFTConfig", "TRLSFTTrainer"]

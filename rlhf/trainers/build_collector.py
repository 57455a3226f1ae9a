"""Which samples a recipe learns from: rollouts, rollouts with completions of the reference, or pairs of a dataset."""

from pathlib import Path
from typing import Any

from rlhf.config.recipe import RecipeConfig
from rlhf.data.order import PromptStream
from rlhf.data.preference_source import PreferenceSource
from rlhf.data.types import REFERENCE
from rlhf.rewards.scoring import RewardScorer
from rlhf.rollouts.dialogues import Sampler
from rlhf.training.collecting import CalibratedCollector, Collector, PreferenceCollector, RolloutCollector
from rlhf.training.learner import Learner
from rlhf.training.recorder import Recorder
from rlhf.training.reference_table import ReferenceTable, make_table, read_table
from rlhf.training.trainer import RolloutAlgorithm
from rlhf.training.weight_sync import sync_weights


def make_collector(
    config: RecipeConfig, stream: PromptStream, engine: Sampler | None, scorer: RewardScorer, recorder: Recorder,
    algorithm: RolloutAlgorithm, learner: Learner,
) -> Collector:  # fmt: skip
    """The collector that `data` and `algorithm` of a recipe's configuration ask for. `engine`: samples completions, or
    sessions."""
    ranks = {"rank": learner.accelerator.process_index, "world_size": learner.accelerator.num_processes}
    if isinstance(stream.source, PreferenceSource):
        return PreferenceCollector(stream, config.batch.prompts_per_step, **ranks)
    rollouts = RolloutCollector(
        config, stream=stream, engine=engine, scorer=scorer, recorder=recorder,
        wants_replacement=algorithm.wants_replacement, **ranks,
    )  # fmt: skip
    if not needs_reference_completions(config.algorithm):
        return rollouts
    return CalibratedCollector(
        rollouts, config.algorithm.calibration_samples,
        sync_reference=lambda: sync_weights(learner.reference_weights(), engine, REFERENCE),
        sync_policy=lambda version: sync_weights(learner.policy_weights(), engine, version),
    )  # fmt: skip


def needs_reference_completions(algorithm: Any) -> bool:
    """Whether the value term is of completions that the reference has to make."""
    return getattr(algorithm, "calibration", None) in ("ref", "ref_wrong") and bool(algorithm.alpha)


def reference_table(
    config: RecipeConfig, stream: PromptStream, learner: Learner, file: Path, step: int
) -> ReferenceTable | None:
    """The reference's log-probs of the pairs that the run will take, made or read; None where a model gives them."""
    if config.algorithm.reference_logps == "live":
        return None
    if step > 0 or file.exists():
        return read_table(stream.source, file)
    wanted = stream.upcoming(config.batch.steps * config.batch.prompts_per_step)
    return make_table(stream.source, wanted, learner, file)

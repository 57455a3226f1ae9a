"""What stops a run that would go on wrong: non-finite losses and gradients, and an engine that is not the learner's
policy."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf.algorithms.aggregation import StepTotals
from rlhf.config.training import BatchConfig, GuardConfig
from rlhf.training.batch import TrainingSample
from rlhf.training.collectives import gather_lists, sum_numbers
from rlhf.training.run_folder import plain, sample_record, write_atomically

if TYPE_CHECKING:
    from rlhf.training.algorithm import Algorithm
    from rlhf.training.learner import Learner


class TrainingStopped(RuntimeError):
    """The run ends here on purpose; the message says what was found and where it was written."""


class NonFiniteGuard:
    """Skips optimizer steps with a non-finite loss or gradient on all ranks, names the samples, and stops after too
    many.

    `dumps` is the run's folder for what was found.
    """

    def __init__(self, config: GuardConfig, dumps: Path) -> None:
        self.config = config
        self.dumps = dumps
        self.skipped_in_row = 0

    @staticmethod
    def is_bad(loss: float, norm: float) -> bool:
        """Both are already summed over ranks, so all ranks decide alike."""
        return not (math.isfinite(loss) and math.isfinite(norm))

    def reset(self) -> None:
        self.skipped_in_row = 0

    def skip(
        self,
        step: int,
        learner: "Learner",
        samples: list[TrainingSample],
        totals: StepTotals,
        algorithm: "Algorithm",
        old_logps: dict[int, Tensor] | None,
        *,
        loss: float,
        norm: float,
    ) -> None:
        """Find the culprits (each sample alone, and the weights), write a dump, raise TrainingStopped after too many
        in a row."""
        self.skipped_in_row += 1
        weights = sorted(set(gather_lists(learner.weights.non_finite_names())))
        culprits = []
        for sample in self._one_by_one(samples, learner):
            own_loss, finite = learner.sample_gradient(sample, totals, algorithm, old_logps)
            if sample is not None and (not finite or not math.isfinite(own_loss)):
                record = sample_record(step, sample.sample, token_ids=True)
                extra = {"loss": own_loss, "gradient_finite": finite, "advantage": sample.advantage}
                culprits.append({"id": sample.sample.id, **extra, "engine_logps": list(sample.sample.logps), **record})
        culprits = gather_lists(culprits)
        dump = self.dumps / f"step-{step:06d}-skip-{self.skipped_in_row}.json"
        if learner.accelerator.is_main_process:
            report = {"step": step, "loss": loss, "gradient_norm": norm, "weights": weights, "samples": culprits}
            self.dumps.mkdir(parents=True, exist_ok=True)
            write_atomically(dump, [json.dumps(plain(report), indent=1).encode("utf-8", "backslashreplace")])
        message = (
            f"step {step}: optimizer step skipped, loss {loss}, gradient norm {norm}. "
            f"{_name('weights', weights)}{_name('samples', [culprit['id'] for culprit in culprits])}Details: {dump}"
        )
        learner.accelerator.print(f"WARNING {message}")
        if self.skipped_in_row >= self.config.max_skipped_steps:
            raise TrainingStopped(
                f"{message}. That is {self.skipped_in_row} in a row (guards.max_skipped_steps): the run stops. "
                "The last checkpoint is untouched; lower the learning rate or look at the samples in the dump"
            )

    @staticmethod
    def _one_by_one(samples: list[TrainingSample], learner: "Learner") -> list[TrainingSample | None]:
        """This rank's samples; where passes are collective with None while it is another rank's turn."""
        if not learner.weights.is_sharded:
            return list(samples)
        counts, rank = gather_lists([len(samples)]), learner.accelerator.process_index
        before, after = sum(counts[:rank]), sum(counts[rank + 1 :])
        return [None] * before + samples + [None] * after

    def check_ratio(self, step: int, ratio_sum: float, tokens: int, device: torch.device) -> None:
        """At the first update after a sync the learner's probabilities over the engine's must be 1 on average, where
        the engine had the learner's weights (`is_stale`).

        Raises TrainingStopped when they are off by more than `ratio_tolerance`. A non-finite ratio is left to the guard
        of the gradient, which names the sample.
        """
        summed = sum_numbers({"ratio": ratio_sum, "tokens": tokens}, device)
        if not summed["tokens"] or not math.isfinite(summed["ratio"]):
            return
        mean = summed["ratio"] / summed["tokens"]
        if abs(mean - 1) > self.config.ratio_tolerance:
            raise TrainingStopped(
                f"step {step}: the learner gives the engine's tokens {mean:.4f} times the engine's probability on "
                f"average "
                f"(guards.ratio_tolerance {self.config.ratio_tolerance}). The engine samples from another policy: "
                f"check that both "
                "use the same dtype, temperature and checkpoint, or set engine.type: transformers to find out "
                "which is wrong"
            )


def is_stale(samples: Sequence[TrainingSample], step: int, batch: BatchConfig) -> bool:
    """Whether the samples of `step` are of an older policy than the one that learns from them, so that their ratio is
    not 1. Without `batch.staleness` they never are: an older version then means that the policy has not moved since."""
    return batch.staleness > 0 and any(sample.sample.policy_version < step - 1 for sample in samples)


def _name(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"Non-finite {kind}: {', '.join(names[:8])}{more}. "

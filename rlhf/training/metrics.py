"""Metrics: how they are named, averaged over samples and ranks, and handed to trackers.

A name is `section/name`. The sections of `TIMING_SECTIONS` hold what differs between two identical runs (clocks,
memory); everything else is a pure function of config, code and checkpoint, and may be compared bit by bit.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelerate.tracking import GeneralTracker
from accelerate.utils import gather_object

from rlhf.config.training import TrackingConfig
from rlhf.data.types import Sample

if TYPE_CHECKING:
    from accelerate import Accelerator

TIMING_SECTIONS = ("time", "speed", "memory")


def is_timing(name: str) -> bool:
    """Whether the metric depends on the clock or the machine's memory, and so differs between identical runs."""
    return name.split("/", 1)[0] in TIMING_SECTIONS


def deterministic(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that two identical runs must share."""
    return {name: value for name, value in metrics.items() if not is_timing(name)}


class MetricAverager:
    """Weighted means, sums and maxima of named values, over a step and then over ranks.

    A name belongs to one of the three kinds; using it as another raises ValueError. A mean whose weights sum to 0 is
    left out. NaN stays NaN: hiding it here would hide what the guards look for.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}
        self._totals: dict[str, float] = {}
        self._weights: dict[str, float] = defaultdict(float)

    def add(self, name: str, value: float, weight: float = 1.0) -> None:
        """One value of a mean; `weight` is e.g. the number of tokens that `value` is a mean of."""
        self._claim(name, "mean")
        # 0 * inf is nan: a value without weight says nothing.
        self._totals[name] = self._totals.get(name, 0.0) + (float(value) * weight if weight else 0.0)
        self._weights[name] += weight

    def add_sum(self, name: str, value: float) -> None:
        """One addend of a total, e.g. a count of time-outs."""
        self._claim(name, "sum")
        self._totals[name] = self._totals.get(name, 0.0) + float(value)

    def add_max(self, name: str, value: float) -> None:
        """One candidate of a maximum, e.g. the peak memory of a rank."""
        self._claim(name, "max")
        known = self._totals.get(name, -math.inf)
        self._totals[name] = math.nan if math.isnan(known) or math.isnan(value) else max(known, float(value))

    def merge(self, other: "MetricAverager") -> None:
        """Add everything that `other` saw."""
        for name, kind in other._kinds.items():
            total = other._totals[name]
            if kind == "max":
                self.add_max(name, total)
            elif kind == "sum":
                self.add_sum(name, total)
            else:
                self._claim(name, "mean")
                self._totals[name] = self._totals.get(name, 0.0) + total
                self._weights[name] += other._weights[name]

    def result(self) -> dict[str, float]:
        """The values of this rank, in the order in which the names first came."""
        values = {}
        for name, kind in self._kinds.items():
            if kind != "mean":
                values[name] = self._totals[name]
            elif self._weights[name]:
                values[name] = self._totals[name] / self._weights[name]
        return values

    def reduce(self) -> dict[str, float]:
        """The values over all ranks, the same on each; collective. Ranks may know different names.

        Added in rank order and double precision, so the result does not depend on the backend's reduction order.
        """
        total = MetricAverager()
        for other in gather_object([self]):
            total.merge(other)
        return total.result()

    def _claim(self, name: str, kind: str) -> None:
        if self._kinds.setdefault(name, kind) != kind:
            raise ValueError(f"metric {name!r} is a {self._kinds[name]} and was used as a {kind}: give it another name")


def rollout_metrics(samples: Sequence[Sample]) -> MetricAverager:
    """What graded samples say by themselves: rewards by part, lengths, groups without a signal, grading outcomes.

    `groups/zero_signal_share` is the share of prompts whose samples all have the same reward, so a group must not be
    split between ranks. A group of one has no signal. Raises ValueError for a sample that was not graded.
    """
    averager = MetricAverager()
    groups: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        if sample.reward is None:
            raise ValueError(f"sample {sample.id!r} has no reward: grade the samples before taking their metrics")
        groups[sample.prompt.id].append(sample.reward)
        averager.add("reward/mean", sample.reward)
        for name, value in sample.rewards.items():
            averager.add(f"reward/{name}", value if value is not None else 0.0, weight=float(value is not None))
        averager.add("tokens/completion_mean", len(sample.completion_ids))
        averager.add("tokens/truncated_share", float(sample.truncated))
        if sample.turns:
            _add_dialogue(averager, sample)
        if sample.verdict is not None:
            averager.add("grading/right_share", float(sample.verdict.outcome == "right"))
            averager.add("grading/ungradable_share", float(sample.verdict.outcome == "ungradable"))
            averager.add_sum("grading/timeouts", float(sample.verdict.timed_out))
    for rewards in groups.values():
        averager.add("groups/zero_signal_share", float(min(rewards) == max(rewards)))
        mean = math.fsum(rewards) / len(rewards)
        averager.add("reward/group_std", math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / len(rewards)))
    return averager


def staleness_metrics(step: int, samples: Sequence[Sample]) -> MetricAverager:
    """How many steps the policy that learns in `step` is ahead of the one that made its samples."""
    averager = MetricAverager()
    for sample in samples:
        averager.add("staleness/mean", step - 1 - sample.policy_version)
        averager.add_max("staleness/max", step - 1 - sample.policy_version)
    return averager


def _add_dialogue(averager: MetricAverager, sample: Sample) -> None:
    averager.add("dialogue/reward_per_turn", math.fsum(sample.turn_rewards) / len(sample.turns), len(sample.turns))
    averager.add("dialogue/turns_mean", len(sample.turns))
    averager.add("dialogue/own_tokens_per_turn", sample.own_tokens / len(sample.turns), len(sample.turns))
    tokens = len(sample.completion_ids)
    averager.add("dialogue/environment_token_share", 1 - sample.own_tokens / tokens, tokens)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested config as `section.name: primitive`, which is all that TensorBoard's hyperparameters take."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


class Trackers:
    """TensorBoard, Weights & Biases and trackio, through an Accelerator made with `log_with=config.trackers`.

    TensorBoard also needs the Accelerator's `project_dir`.
    """

    def __init__(self, accelerator: "Accelerator", config: TrackingConfig) -> None:
        self._accelerator = accelerator
        self._config = config

    def start(self, resolved: Mapping[str, Any]) -> None:
        """Open the trackers with the resolved config. Raises ModuleNotFoundError for one that is not installed.

        Accelerate leaves such a tracker out with a debug line, and the run's curves would be missed only at its end.
        """
        if not self._config.trackers:
            return
        # What Accelerate was asked for and found installed: names, or a user's own tracker objects.
        asked = self._accelerator.log_with
        available = {tracker.name if isinstance(tracker, GeneralTracker) else str(tracker) for tracker in asked}
        for name in self._config.trackers:
            if name not in available:
                raise ModuleNotFoundError(
                    f"tracking.trackers has {name!r}, which is not available (found: {sorted(available) or 'none'}): "
                    f"pip install {name}, or take it out of tracking.trackers"
                )
        self._accelerator.init_trackers(self._config.project, config=flatten(resolved))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the numbers of one step."""
        if self._config.trackers:
            self._accelerator.log({k: v for k, v in metrics.items() if isinstance(v, int | float)}, step=step)

    def end(self) -> None:
        """Flush and close; call before the process ends."""
        if self._config.trackers:
            self._accelerator.end_training()

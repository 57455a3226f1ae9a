"""NORA: an optimistic actor-critic with rare switching (arXiv 2505.03710, algorithm 2), its relatives and ablations.

    for each episode:
        play pi
        if the excess loss of the frozen critic f reaches multiplier beta value_max^2 at some pair:
            f <- optimistic critic of Q* on all data;  pi <- uniform                                   # reset
        pi <- pi exp(eta f) / Z

Data and confidence set are never reset; the actor moves in every episode, the critic rarely. A reconstruction: the
multiplier 5 is recalled and the box form of the confidence set derived, neither verified against the paper's text.
Total rewards in [0, 1] make the range of values 1, where the paper has H.
"""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlhf.algorithms.tabular.episodic_values import EpisodicValues, critic, optimal_values, start_values
from rlhf.algorithms.tabular.frozen_plans import uniform_numbers
from rlhf.algorithms.tabular.mdp import Array, EpisodicMDP, cumulative_rows
from rlhf.algorithms.tabular.mirror_ascent import StepSize, accumulated_weight, boltzmann, check_step_size
from rlhf.algorithms.tabular.pair_statistics import PairStatistics
from rlhf.algorithms.tabular.regret import LearningRecord, Switch, check_marks

OPTIMISM_TOLERANCE = 1e-6
BLOCK = 256
"""Policies worked out ahead while the critic stays: one numpy call for many episodes."""

_CHOICES = {
    "reset": ("switch", "none"), "target": ("optimal", "policy"), "actor": ("mirror", "greedy"),
    "switching": ("rare", "rare_or_doubling", "every_episode"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NoraSettings:
    """`step_size`: eta, or a schedule of `accumulated_weight`. `beta`: squared radius of a pair's box over value_max^2.

    `reset` none keeps the exponents of former critics. `target` policy makes the critic one of Q^pi (DOUHUA, the
    paper's algorithm 1, with `switching` every_episode and no reset). `actor` greedy acts on argmax f. `is_optimistic`
    False needs offline data that cover the best policy, and rare_or_doubling: without a bonus the excess may not grow.

    Raises ValueError for settings out of range or that do not go together.
    """

    step_size: StepSize = "anytime"
    beta: float = 0.05
    multiplier: float = 5.0
    value_max: float = 1.0
    is_optimistic: bool = True
    reset: Literal["switch", "none"] = "switch"
    target: Literal["optimal", "policy"] = "optimal"
    actor: Literal["mirror", "greedy"] = "mirror"
    switching: Literal["rare", "rare_or_doubling", "every_episode"] = "rare"

    def __post_init__(self) -> None:
        check_step_size(self.step_size)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose {', '.join(choices)}")
        if not (self.beta > 0 and self.multiplier > 1 and self.value_max > 0):
            raise ValueError(
                f"beta {self.beta}, multiplier {self.multiplier}, value_max {self.value_max}: beta and value_max must "
                "be above 0 and the multiplier above 1"
            )
        if self.step_size == "anytime" and self.reset == "none":
            raise ValueError("step_size anytime counts from the last reset: with reset none give a number")
        if self.target == "policy" and self.switching != "every_episode":
            raise ValueError("target policy is stale after one step of the actor: it needs switching every_episode")


@dataclass(frozen=True, slots=True)
class OfflineData:
    """`episodes` of `behaviour_HSA`, played before the first online one; they count as data and not as regret."""

    episodes: int
    behaviour_HSA: Array


@dataclass(frozen=True, slots=True)
class NoraRun:
    """The record, in episodes, and what the policy of the last episode is worth in state 0, beside V*."""

    record: LearningRecord
    final_value: float
    optimal_value: float

    @property
    def optimality(self) -> float:
        """V^pi / V* of the last episode."""
        return self.final_value / self.optimal_value


def run_nora(
    mdp: EpisodicMDP,
    settings: NoraSettings,
    *,
    episodes: int,
    seed: int,
    offline: OfflineData | None = None,
    marks: Sequence[int] | None = None,
) -> NoraRun:
    """Learn for `episodes` episodes from state 0.

    Raises ValueError for `marks` out of order, or an offline behaviour whose shape is not that of the process.
    """
    marks = check_marks(marks, episodes)
    horizon, states, actions = mdp.shape
    player = _Player(mdp, seed)
    if offline is not None:
        if offline.behaviour_HSA.shape != mdp.shape:
            raise ValueError(f"behaviour_HSA has shape {offline.behaviour_HSA.shape}, the process {mdp.shape}")
        behaviour = cumulative_rows(offline.behaviour_HSA)
        for _ in range(offline.episodes):
            player.play(behaviour)
    actor = _Actor(settings, mdp.shape, episodes)
    best = float(optimal_values(mdp).value_HS[0, 0])
    threshold = settings.multiplier * settings.beta * settings.value_max**2
    at_marks: list[float] = []
    switches: list[Switch] = []
    regret, played, block, policy_HSA = 0.0, 0, 1, np.full(mdp.shape, 1 / actions)
    is_due = True
    while played < episodes:
        if is_due:
            values = critic(
                player.statistics.model(*mdp.shape), beta=settings.beta, value_max=settings.value_max,
                is_optimistic=settings.is_optimistic, policy_HSA=policy_HSA if settings.target == "policy" else None,
            )  # fmt: skip
            player.freeze(values)
            actor.switch(values.q_HSA)
            estimate = float(values.value_HS[0, 0])
            switches.append(Switch(played, estimate, estimate >= best - OPTIMISM_TOLERANCE))
            block, is_due = 1, False
        policy_BHSA = actor.policies(min(block, episodes - played))
        value_B = start_values(mdp, policy_BHSA).tolist()
        policy_rows = cumulative_rows(policy_BHSA)
        for number, value in enumerate(value_B):
            excess = player.play(policy_rows[number * horizon * states : (number + 1) * horizon * states])
            regret += best - value
            played += 1
            if played == marks[len(at_marks)]:
                at_marks.append(regret)
            is_doubling = settings.switching == "rare_or_doubling" and played & (played - 1) == 0
            is_due = excess >= threshold or is_doubling or settings.switching == "every_episode"
            if is_due:
                break
        actor.steps += number + 1
        policy_HSA = policy_BHSA[number]
        block = min(2 * block, BLOCK)
    return NoraRun(LearningRecord(marks, tuple(at_marks), tuple(switches)), value, best)


class _Actor:
    """Mirror ascent on the critic of the last switch, from a base: uniform, or what former critics left."""

    def __init__(self, settings: NoraSettings, shape: tuple[int, int, int], episodes: int) -> None:
        self.settings = settings
        self.episodes = episodes
        self.steps = 0
        self.f_HSA = np.zeros(shape)
        self.base_HSA = np.zeros(shape)

    def switch(self, f_HSA: Array) -> None:
        if self.settings.reset == "none":
            # `steps` is one ahead of the episode played last; before the first one the critic is 0
            self.base_HSA = self.base_HSA + self._weight(np.array(self.steps - 1.0)) * self.f_HSA
        # the first episode is uniform, those after a switch begin with one step on the new critic
        self.steps = min(self.steps, 1)
        self.f_HSA = f_HSA

    def policies(self, count: int) -> Array:
        """Those of the next `count` episodes if there is no switch, (count, H, S, A)."""
        actions = self.f_HSA.shape[-1]
        if self.settings.actor == "greedy":
            return np.broadcast_to(np.eye(actions)[self.f_HSA.argmax(-1)], (count, *self.f_HSA.shape))
        weight_B = self._weight(np.arange(self.steps, self.steps + count, dtype=np.float64))
        return boltzmann(self.base_HSA + weight_B[:, None, None, None] * self.f_HSA)

    def _weight(self, steps: Array) -> Array:
        return accumulated_weight(
            steps, self.settings.step_size,
            actions=self.f_HSA.shape[-1], value_max=self.settings.value_max, episodes=self.episodes,
        )  # fmt: skip


class _Player:
    """Plays episodes and keeps their statistics."""

    def __init__(self, mdp: EpisodicMDP, seed: int) -> None:
        self.horizon, self.states, self.actions = mdp.shape
        self.statistics = PairStatistics(self.horizon * self.states * self.actions, self.states)
        self._rewards: list[float] = mdp.reward_HSA.ravel().tolist()
        self._rows = cumulative_rows(mdp.transition_HSAS)
        self._uniforms = uniform_numbers(np.random.default_rng(seed))

    def freeze(self, values: EpisodicValues) -> None:
        next_PS = np.repeat(values.value_HS[1:], self.states * self.actions, axis=0)
        self.statistics.freeze(values.q_HSA, next_PS)

    def play(self, policy_rows: Sequence[Sequence[float]]) -> float:
        """One episode with cumulative action probabilities, a row for each (h, s); its largest excess loss."""
        state, largest = 0, 0.0
        for h in range(self.horizon):
            place = h * self.states + state
            pair = place * self.actions + bisect(policy_rows[place], next(self._uniforms))
            state = bisect(self._rows[pair], next(self._uniforms))
            largest = max(largest, self.statistics.record(pair, self._rewards[pair], state))
        return largest

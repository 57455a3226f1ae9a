"""When the critic that guides the policy is exchanged for the newer one: rarely, and only for one that fits the data.

Between switches that critic is frozen. Switching rarely keeps regret at sqrt(T) where the policy is reset at each
switch (arXiv 2505.03710) or each switch costs up to the span of the values (arXiv 2404.12648).

excess: the frozen critic's squared Bellman error exceeds the least possible one by a fixed threshold. logdet: the
actions since the last switch brought a number of nats to linear features. infogain: the same by the variance of the
ensemble.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlhf.algorithms.elliptic import information_bound
from rlhf.algorithms.value_targets import check_positive

SwitchKind = Literal["excess", "logdet", "infogain"]
KINDS: tuple[SwitchKind, ...] = ("excess", "logdet", "infogain")
# the papers' constants are recalled, not verified; any in [3, 8] changes only the base of the logarithmic growth
NORA_MULTIPLE, LOOP_MULTIPLE = 5.0, 4.0


class Decision(NamedTuple):
    """`cause`: why to switch; None is no switch. `statistic` and `threshold`: of the rule, also where it was not it."""

    cause: SwitchKind | Literal["forced"] | None
    statistic: float
    threshold: float


@dataclass(frozen=True, slots=True)
class SwitchEvent:
    """One switch that took place: the iteration (from 0), its cause, and how many iterations the critic before had."""

    iteration: int
    cause: str
    statistic: float
    epoch_length: int


class SwitchController:
    """Counts iterations and information, and decides when to try a switch.

    `threshold`: a fixed one, in squared value units for excess (`excess_threshold`), in nats otherwise. A threshold
    relative to the last switch's own statistic lost solutions that had been found. `buckets`: of the horizon; the one
    with most nats decides. At least `min_iters` iterations pass between two tries, and a switch is forced `max_iters`
    iterations after the last (None: never).

    Each iteration: `gain` (logdet, infogain) or none, then one `decide`. If it says to switch, the newer critic is
    trained until it fits (`train_until_member`); then one of `switched` and `refused` follows.

    Raises ValueError for an unknown kind or bounds that make no sense.
    """

    def __init__(
        self, kind: SwitchKind, *, threshold: float, buckets: int = 1, min_iters: int = 4, max_iters: int | None = 64
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of switch {kind!r}: choose from {', '.join(KINDS)}")
        check_positive("threshold", threshold)
        if min_iters < 1 or (max_iters is not None and max_iters < min_iters):
            raise ValueError(
                f"min_iters must be at least 1 and max_iters at least min_iters, got {min_iters} and {max_iters}"
            )
        self.kind, self.threshold, self.min_iters, self.max_iters = kind, threshold, min_iters, max_iters
        self.nats_G = torch.zeros(buckets, dtype=torch.float64)
        self.iteration = 0
        self.since_switch = 0
        self.since_attempt = 0
        self.events: list[SwitchEvent] = []
        self.refusals = 0
        self._pending: Decision | None = None

    @property
    def switches(self) -> int:
        return len(self.events)

    def gain(self, nats_A: Tensor, bucket_A: Tensor | None = None) -> None:
        """Count what new actions brought, once each: `GramMatrices.add` or `information_gains`; (A,) in nats.

        Raises ValueError for the kind excess, which has no use for it, or nats that are negative or not finite.
        """
        if self.kind == "excess":
            raise ValueError("the excess rule counts no nats: give its statistic to `decide`")
        if not (nats_A.isfinite().all() and (nats_A >= 0).all()):
            raise ValueError("actions bring finite nats, 0 or more: check features and variances")
        nats_A = nats_A.detach().to(self.nats_G)
        bucket_A = torch.zeros(len(nats_A), dtype=torch.long) if bucket_A is None else bucket_A.to(self.nats_G.device)
        self.nats_G = self.nats_G.index_add(0, bucket_A, nats_A)

    def is_due(self) -> bool:
        """Whether the next `decide` can say to switch: excess need not be computed for it otherwise."""
        return self.since_attempt + 1 >= self.min_iters

    def decide(self, excess: float | None = None) -> Decision:
        """End an iteration. `excess` for the excess rule where `is_due`.

        Raises ValueError for an excess that is missing or not finite, and where the last decision to switch was neither
        carried out nor refused.
        """
        if self._pending is not None:
            raise ValueError("the last decision was to switch: call `switched` or `refused` before the next one")
        due = self.is_due()
        if self.kind == "excess" and due and (excess is None or not math.isfinite(excess)):
            raise ValueError(f"the excess rule needs the frozen critic's excess loss, finite, and got {excess}")
        self.iteration, self.since_switch, self.since_attempt = (
            self.iteration + 1, self.since_switch + 1, self.since_attempt + 1
        )  # fmt: skip
        statistic = float(self.nats_G.max()) if self.kind != "excess" else math.nan if excess is None else excess
        cause = None
        if due and statistic >= self.threshold:
            cause = self.kind
        elif due and self.max_iters is not None and self.since_switch >= self.max_iters:
            cause = "forced"
        decision = Decision(cause, statistic, self.threshold)
        self._pending = decision if cause else None
        return decision

    def switched(self) -> SwitchEvent:
        """The newer critic guides the policy from now on. Raises ValueError where no decision was to switch."""
        decision = self._take()
        event = SwitchEvent(self.iteration - 1, decision.cause, decision.statistic, self.since_switch)
        self.events.append(event)
        self.since_switch = self.since_attempt = 0
        self.nats_G = torch.zeros_like(self.nats_G)
        return event

    def refused(self) -> None:
        """The newer critic fits no better: the frozen one stays, and `min_iters` pass before the next try. What was
        counted stays counted. Raises ValueError where no decision was to switch."""
        self._take()
        self.since_attempt = 0
        self.refusals += 1

    def _take(self) -> Decision:
        if self._pending is None:
            raise ValueError("there is no decision to switch: call `decide` first, and do as it says")
        decision, self._pending = self._pending, None
        return decision

    def state_dict(self) -> dict[str, object]:
        """A tensor and JSON types. Raises ValueError between a decision to switch and what came of it."""
        if self._pending is not None:
            raise ValueError("a switch is under way: save a checkpoint after `switched` or `refused`")
        return {
            "kind": self.kind, "threshold": self.threshold, "nats_G": self.nats_G.clone(), "iteration": self.iteration,
            "since_switch": self.since_switch, "since_attempt": self.since_attempt, "refusals": self.refusals,
            "events": [asdict(event) for event in self.events],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Raises ValueError where the rule is not the one that the state was taken with."""
        rule = (self.kind, self.threshold, len(self.nats_G))
        saved = (state["kind"], state["threshold"], len(state["nats_G"]))
        if saved != rule:
            raise ValueError(f"the checkpoint switches by (kind, threshold, buckets) = {saved}, and this run by {rule}")
        self.nats_G = state["nats_G"].clone()
        for name in ("iteration", "since_switch", "since_attempt", "refusals"):
            setattr(self, name, state[name])
        self.events = [SwitchEvent(**event) for event in state["events"]]
        self._pending = None


def excess_loss(
    error_frozen_A: Tensor, error_refit_A: Tensor, actions: int, weight_A: Tensor | None = None
) -> float:
    """N (mean e_frozen^2 - mean e_refit^2): by how much the frozen critic's squared error on N actions exceeds the
    least one, in squared value units.

    Errors are Q - y of actions that the critic does not learn from, on the same y = r + V_frozen(s') for both (with
    average reward y = r - c J_frozen + V_frozen(s')); the other critic was fitted to these y. `weight_A`: how often
    each action stands for itself in the buffer.
    """
    weight_A = torch.ones_like(error_frozen_A) if weight_A is None else weight_A.to(error_frozen_A)
    # a difference of large sums: float64
    difference_A = error_frozen_A.double().square() - error_refit_A.double().square()
    return actions * float((difference_A * weight_A).sum() / weight_A.sum())


def excess_threshold(multiple: float, value_range: float, actions: int, scale: float = 0.05) -> float:
    """multiple x beta, beta = scale range^2 (1 + log N); `multiple` is 5 for NORA and 4 for LOOP. Fix it at the start,
    with N the actions that the run is expected to collect."""
    return multiple * set_tolerance(value_range, actions, scale)


def set_tolerance(value_range: float, actions: int, scale: float = 0.05) -> float:
    """beta = scale range^2 (1 + log N): the most excess that a critic may have when it is switched to."""
    return scale * value_range**2 * (1 + math.log(max(1, actions)))


def logdet_threshold(features: int, actions: int, switches: int, ridge: float = 1.0) -> float:
    """Nats between two of `switches` switches over N actions, at least: the information bound by their number."""
    return information_bound(features, actions, ridge) / switches


def information_gains(variance_A: Tensor, noise: float) -> Tensor:
    """log(1 + Var_k Q / sigma^2) of each action, (A,), in nats; `noise` is sigma, in value units."""
    check_positive("noise", noise)
    return (variance_A / noise**2).log1p()


def train_until_member(
    step: Callable[[], None],
    score: Callable[[], float],
    *,
    tolerance: float | None,
    max_steps: int = 400,
    every: int = 20,
) -> float:
    """Train the newer critic until it is in the confidence set; its last score.

    `score` is its excess loss, and at most `tolerance` is in the set. Without a tolerance (logdet, infogain) it is a
    held-out loss, and training ends when that stops falling. It is asked for before the first step and after `every`
    steps. Copy only a critic that scores below the frozen one.
    """
    found = score()
    for _ in range(0, max_steps, every):
        if tolerance is not None and found <= tolerance:
            break
        for _ in range(every):
            step()
        before, found = found, score()
        if tolerance is None and found >= before:
            break
    return found

"""LOOP's critic: each member has values and a gain of its own; the one of the confidence set that promises the highest
gain is planned with, frozen until the next exchange."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.algorithms.average_reward import (
    ActionCosts,
    RenewalGain,
    anchored_gain,
    differential_errors,
    gain_alarm,
    most_optimistic_member,
    newton_gain,
)
from rlhf.algorithms.mdp_views import ActionView
from rlhf.algorithms.optimism import confidence_set, set_radius
from rlhf.algorithms.value_targets import end_values
from rlhf.config.loop import AverageRewardConfig
from rlhf.data.types import Sample
from rlhf.training.collectives import sum_numbers
from rlhf.training.optimistic_critic import Guidance, OptimisticCritic, Transitions


class AverageRewardCritic(OptimisticCritic):
    """Q_k(s, a) = r - c(a) J_k + V_k(s'), with V_k anchored at 0 over prompts by J_k alone (arXiv 2404.12648, in the
    semi-Markov form that prompts need, which is derived and not the paper's)."""

    settings: AverageRewardConfig

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        gain, members = self.settings.gain, self.settings.ensemble.members
        self.costs = ActionCosts(gain.per_episode, gain.per_token)
        self.gain_K = torch.zeros(members, dtype=torch.float64)
        self.prompt_value_K = torch.zeros(members, dtype=torch.float64)
        self.planned_member, self.planned_gain = 0, 0.0
        self.renewal = RenewalGain()
        # of episodes that no member had learned from, since the last exchange
        self.fresh_error_K, self.fresh_actions = torch.zeros(members, dtype=torch.float64), 0.0
        self.actions = 0.0

    def cost(self, view: ActionView) -> Tensor:
        """Units of each action; (A,)."""
        return self.costs(view, self.settings.gain.unit)

    def price(self, view: ActionView) -> Tensor:
        """What the planned gain says that each action costs; (A,)."""
        return self.planned_gain * self.cost(view)

    def learn(self, samples: Sequence[Sample], fresh: Transitions | None) -> None:
        """As the base class; before it, what the members make of episodes that they have not seen."""
        self._judge(fresh)
        super().learn(samples, fresh)
        low, high = self.settings.actions.bounds
        mean, value_range = float(self.gain_K.mean()), high - low
        self.metrics |= {
            "gain/mean": mean, "gain/lowest": float(self.gain_K.min()), "gain/highest": float(self.gain_K.max()),
            "gain/renewal": self.renewal.gain, "gain/prompt_value": float(self.prompt_value_K.mean()),
            "gain/alarm": float(gain_alarm(mean, self.renewal.gain, value_range, self.epoch)),
        }  # fmt: skip

    def exchange(self) -> bool:
        """As the base class; an exchange plans: the member of the confidence set with the highest gain."""
        if not super().exchange():
            return False
        if self.settings.gain.estimator == "newton" and self.renewal.cost > 0:
            self.gain_K = newton_gain(self.gain_K, self.prompt_value_K[None], self.renewal.cost)
        low, high = self.settings.actions.bounds
        loss_K = self.fresh_error_K / max(self.fresh_actions, 1.0)
        radius = set_radius(high - low, len(loss_K), int(self.actions))
        in_set_K = confidence_set(loss_K, int(self.actions), radius)
        self.planned_member = most_optimistic_member(self.gain_K, in_set_K)
        self.planned_gain = float(self.gain_K[self.planned_member])
        self.metrics |= {
            "gain/planned": self.planned_gain, "gain/members_in_set": float(in_set_K.sum()),
            "gain/optimism_violated": float(self.planned_gain < self.renewal.gain),
        }  # fmt: skip
        self.renewal.restart()
        self.fresh_error_K = torch.zeros_like(self.fresh_error_K)
        self.fresh_actions = 0.0
        return True

    @torch.no_grad()
    def guidance(self, state_SD: Tensor) -> Guidance:
        """By the frozen critic's planned member."""
        value_SK = self.frozen(state_SD)
        return Guidance(value_SK[:, self.planned_member].cpu(), value_SK.std(-1).cpu())

    def optimizer_state(self) -> dict[str, Any]:
        """As the base class, and the gains."""
        return super().optimizer_state() | {
            "gains": {
                "gain_K": self.gain_K, "prompt_value_K": self.prompt_value_K, "member": self.planned_member,
                "planned": self.planned_gain, "renewal": self.renewal.state_dict(), "fresh_K": self.fresh_error_K,
                "fresh_actions": self.fresh_actions, "actions": self.actions,
            }
        }  # fmt: skip

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """What `optimizer_state` gave."""
        super().load_optimizer_state(state)
        gains = state["gains"]
        self.gain_K, self.prompt_value_K, self.fresh_error_K = (
            gains[name].clone() for name in ("gain_K", "prompt_value_K", "fresh_K")
        )
        self.planned_member, self.planned_gain = gains["member"], gains["planned"]
        self.fresh_actions, self.actions = gains["fresh_actions"], gains["actions"]
        self.renewal.load_state_dict(gains["renewal"])

    @torch.no_grad()
    def _targets(self, batch: Transitions) -> Tensor:
        """r - c J_k + V_k(next state) of each member's own slow copy, within the values' bounds: at a target that V
        cannot reach, J would run away; (A, K)."""
        price_AK = (self.cost(batch.view)[:, None] * self.gain_K.float()).to(self.device)
        return (super()._targets(batch) - price_AK).clamp(*self.settings.value_bounds)

    @torch.no_grad()
    def _after_update(self, batch: Transitions | None) -> None:
        """The gains follow the prompts' values, slowly."""
        members = range(len(self.gain_K))
        summed_K, count = torch.zeros(len(self.gain_K)), 0
        if batch is not None:
            value_BK = self.target(batch.state_SD[batch.view.first_state_B]).cpu()
            summed_K, count = value_BK.sum(0), len(value_BK)
        total = sum_numbers({f"{k:03d}": float(summed_K[k]) for k in members} | {"count": count}, self.device)
        self.prompt_value_K = torch.tensor([total[f"{k:03d}"] for k in members], dtype=torch.float64)
        self.prompt_value_K /= max(total["count"], 1.0)
        if self.settings.gain.estimator == "rvi":
            self.gain_K = anchored_gain(self.gain_K, self.prompt_value_K[None], self.settings.gain.rate)

    @torch.no_grad()
    def _judge(self, fresh: Transitions | None) -> None:
        """Squared errors of all members on new episodes, and what the policy earned for its cost."""
        error_K = torch.zeros(len(self.gain_K), dtype=torch.float64)
        sums = dict.fromkeys(("actions", "reward", "cost", "episodes"), 0.0)
        if fresh is not None:
            view, reward_A, cost_A = fresh.view, fresh.reward_A.double(), self.cost(fresh.view).double()
            value_SK = self.online(fresh.state_SD).double().cpu()
            error_AK = differential_errors(
                value_SK[view.state_A], end_values(value_SK, view, fresh.done_A), reward_A, cost_A, self.gain_K, view
            )
            error_K = error_AK.square().sum(0)
            sums = {
                "actions": float(len(cost_A)), "reward": float(reward_A.sum()), "cost": float(cost_A.sum()),
                "episodes": float(len(view.actions_B)),
            }  # fmt: skip
        names = [f"error {k:03d}" for k in range(len(error_K))]
        totals = sum_numbers(sums | dict(zip(names, error_K.tolist(), strict=True)), self.device)
        self.fresh_error_K = self.fresh_error_K + torch.tensor([totals[name] for name in names], dtype=torch.float64)
        self.fresh_actions += totals["actions"]
        self.actions += totals["actions"]
        if totals["cost"] > 0:
            self.renewal.update(totals["reward"] / totals["episodes"], totals["cost"] / totals["episodes"])

"""LOOP's critic: each member has values and a gain of its own; an optimistic one is planned with, frozen until the next
exchange."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.algorithms.average_reward import (
    ActionCosts,
    RenewalGain,
    anchored_gain,
    gain_alarm,
    most_optimistic_member,
    newton_gain,
    session_gain,
)
from rlhf.algorithms.mdp_views import ActionView
from rlhf.algorithms.optimism import Optimism, confidence_set, set_radius
from rlhf.algorithms.value_targets import end_values
from rlhf.config.loop import AverageRewardConfig
from rlhf.training.collectives import sum_gradients, sum_numbers
from rlhf.training.critics.forms import Predictions
from rlhf.training.critics.optimistic import OptimisticCritic
from rlhf.training.critics.transitions import Transitions


class AverageRewardCritic(OptimisticCritic):
    """Q_k(s, a) = r - c(a) J_k + V_k(s') (arXiv 2404.12648, in the semi-Markov form that prompts need, which is derived
    and not the paper's). For independent prompts V_k is anchored at 0 over prompts, by J_k alone; in sessions, which go
    on over prompts, nothing is."""

    settings: AverageRewardConfig

    def __init__(self, *arguments: Any) -> None:
        self.settings = arguments[4]
        gain, members = self.settings.gain, self.settings.ensemble.members
        self.costs = ActionCosts(gain.per_episode, gain.per_unit)
        self.gain_K = torch.full((members,), gain.initial, dtype=torch.float64)
        super().__init__(*arguments)
        # the plan is the optimism
        low, high = self.settings.value_bounds
        self.optimism = Optimism("none", v_min=low, v_max=high)
        self.prompt_value_K = torch.zeros(members, dtype=torch.float64)
        # what the frozen critic is planned with: a member, or the mean of all (None), and its gain
        self.planned_member = 0 if self.settings.plan.kind == "argmax_J" else None
        self.planned_gain = gain.initial
        self.renewal = RenewalGain()
        # of episodes that no member had learned from, since the last exchange
        self.fresh_loss_K, self.fresh_actions = torch.zeros(members, dtype=torch.float64), 0.0

    def cost(self, view: ActionView) -> Tensor:
        """Units of each action; (A,)."""
        return self.costs(view, self.settings.gain.unit)

    def price(self, view: ActionView) -> Tensor:
        """What each action costs each member, (A, K)."""
        return self.cost(view)[:, None] * self.gain_K.float()

    def learn(self, fresh: Transitions | None) -> None:
        """As the base class; before it, what the members make of episodes that they have not seen."""
        self._judge(fresh)
        super().learn(fresh)
        if self.settings.gain.estimator == "renewal" and self.renewal.cost > 0:
            self.gain_K = torch.full_like(self.gain_K, self.renewal.gain)
        low, high = self.settings.actions.bounds
        mean = float(self.gain_K.mean())
        self.metrics |= {
            "gain/mean": mean, "gain/lowest": float(self.gain_K.min()), "gain/highest": float(self.gain_K.max()),
            "gain/renewal": self.renewal.gain, "gain/newton": self._newton_mean(),
            "gain/prompt_value": float(self.prompt_value_K.mean()), "gain/planned": self.planned_gain,
            "gain/alarm": float(gain_alarm(mean, self.renewal.gain, high - low, self.epoch)),
        }  # fmt: skip

    def exchange(self) -> bool:
        """As the base class; an exchange plans."""
        if not super().exchange():
            return False
        gain = self.settings.gain
        if gain.estimator == "newton" and self.renewal.cost > 0:
            self.gain_K = newton_gain(self.gain_K, self.prompt_value_K[None], self.renewal.cost)
        self.planned_member, self.planned_gain = self._plan_of(self.online)
        if self.settings.plan.kind == "bonus":
            self.planned_gain = self._plan_with_bonus()
        self.metrics |= {
            "gain/planned": self.planned_gain, "gain/optimism_violated": float(self.planned_gain < self.renewal.gain)
        }
        self.renewal.restart()
        self.fresh_loss_K = torch.zeros_like(self.fresh_loss_K)
        self.fresh_actions = 0.0
        return True

    def outcome(self, batch: Transitions) -> Tensor:
        """Returns less what the episodes cost at the planned gain, (B,)."""
        return super().outcome(batch) - self.planned_gain * self._total_cost(batch)

    def optimizer_state(self) -> dict[str, Any]:
        """As the base class, and the gains."""
        return super().optimizer_state() | {
            "gains": {
                "gain_K": self.gain_K, "prompt_value_K": self.prompt_value_K, "member": self.planned_member,
                "planned": self.planned_gain, "renewal": self.renewal.state_dict(), "fresh_K": self.fresh_loss_K,
                "fresh_actions": self.fresh_actions,
            }
        }  # fmt: skip

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """What `optimizer_state` gave."""
        super().load_optimizer_state(state)
        gains = state["gains"]
        self.gain_K, self.prompt_value_K, self.fresh_loss_K = (
            gains[name].clone() for name in ("gain_K", "prompt_value_K", "fresh_K")
        )
        self.planned_member, self.planned_gain = gains["member"], gains["planned"]
        self.fresh_actions = gains["fresh_actions"]
        self.renewal.load_state_dict(gains["renewal"])

    @property
    def _mex_weight(self) -> float:
        # the Lagrangian of argmax J subject to the confidence set: J is implicit in the anchored values
        return self.settings.plan.weight if self.settings.plan.kind == "lagrange" else 0.0

    def _guide_rewards(self, network: nn.Module, batch: Transitions) -> Tensor:
        return self._priced(batch, self._plan_of(network)[1])

    def _priced(self, batch: Transitions, gain: float) -> Tensor:
        return (batch.reward_A - gain * self.cost(batch.view))[:, None].to(self.device)

    def _as_one(self, network: nn.Module, found: Predictions) -> Predictions:
        """The planned member's values, or the mean of all."""
        member, _ = self._plan_of(network)
        if member is None:
            return Predictions(*(None if part is None else part.mean(1, keepdim=True) for part in found))
        return Predictions(*(None if part is None else part[:, member : member + 1] for part in found))

    def _plan_of(self, network: nn.Module) -> tuple[int | None, float]:
        """The member that `network` is planned with, None for the mean of all, and the gain. The learning network's
        values belong to its members' gains as they are, and not to those of the plan before."""
        if network is not self.online:
            return self.planned_member, self.planned_gain
        if self.settings.plan.kind != "argmax_J":
            return None, float(self.gain_K.mean())
        member = self._most_optimistic()
        return member, float(self.gain_K[member])

    def _most_optimistic(self) -> int:
        low, high = self.settings.actions.bounds
        loss_K = self.fresh_loss_K / max(self.fresh_actions, 1.0)
        in_set_K = confidence_set(loss_K, self.actions, set_radius(high - low, len(loss_K), self.actions))
        self.metrics["gain/members_in_set"] = float(in_set_K.sum())
        return most_optimistic_member(self.gain_K, in_set_K)

    def _plan_with_bonus(self) -> float:
        """Solve J + Q = r + bonus std_k(s, a) + V(s') on what is kept, from where the members are; the frozen critic
        then holds the solution. The form of the exact planner for approximated functions; returns J. Collective."""
        plan, ensemble = self.settings.plan, self.settings.ensemble
        optimizer = torch.optim.AdamW(self.frozen.parameters(), lr=ensemble.lr, weight_decay=0.0)
        gain, every = float(self.gain_K.mean()), max(1, plan.steps // 4)
        for step in range(1, plan.steps + 1):
            batch = self._replayed(f"plan {step}: ")
            optimizer.zero_grad(set_to_none=True)
            sums = {"loss": 0.0, "actions": 0.0, "value": 0.0, "error": 0.0, "cost": 0.0, "episodes": 0.0}
            if batch is not None:
                with torch.no_grad():
                    of_members = self.form.predict(self.online, batch)
                    spread_A1 = self.form.action_values(of_members, batch, self._rewards(batch)).std(1, keepdim=True)
                reward_A1 = self._priced(batch, gain) + plan.bonus_scale * spread_A1
                own = self.form.predict(self.frozen, batch)
                slow = Predictions(*(None if part is None else part.detach().mean(1, keepdim=True) for part in own))
                losses_AK = self.form.losses(own, slow, batch, reward_A1)
                summed = losses_AK.mean(1).sum()
                first_B = slow.value_SK[batch.view.first_state_B, 0]
                sums = {
                    "loss": float(summed.detach()), "actions": float(len(losses_AK)), "value": float(first_B.sum()),
                    "error": float(self._errors(slow, slow, batch, reward_A1).sum()),
                    "cost": float(self._total_cost(batch).sum()), "episodes": float(len(first_B)),
                }  # fmt: skip
            total = sum_numbers(sums, self.device)
            if batch is not None:
                (summed / max(total["actions"], 1.0)).backward()
            sum_gradients(list(self.frozen.parameters()))
            optimizer.step()
            if step % every == 0 and total["episodes"]:
                # Dinkelbach's step where values are anchored, else half of the mean error
                if self.settings.gain.sessions:
                    gain += 0.5 * total["error"] / max(total["actions"], 1.0)
                else:
                    gain += total["value"] / max(total["cost"], 1e-9)
        return gain

    def _total_cost(self, batch: Transitions) -> Tensor:
        view = batch.view
        return torch.zeros(len(view.actions_B)).index_add(0, view.sequence_A, self.cost(view))

    def _own_outcome(self, batch: Transitions) -> Tensor:
        return super()._own_outcome(batch) - self._total_cost(batch)[:, None] * self.gain_K.float()

    def _newton_mean(self) -> float:
        if not self.renewal.cost > 0:
            return float("nan")
        return float(newton_gain(self.gain_K, self.prompt_value_K[None], self.renewal.cost).mean())

    def _errors(self, own: Predictions, slow: Predictions, batch: Transitions, reward_AK: Tensor) -> Tensor:
        """Differential errors (A, K), weighted as the values' loss weighs them: else an expectile that leans to the
        best would pull the gain the other way."""
        after_AK = end_values(slow.value_SK, batch.view, batch.done_A)[batch.view.next_state_A]
        error_AK = (reward_AK + after_AK - own.value_SK[batch.view.state_A]).detach()
        ensemble = self.settings.ensemble
        if ensemble.target != "expectile":
            return error_AK
        return error_AK * 2 * (ensemble.expectile - (error_AK < 0).to(error_AK)).abs()

    @torch.no_grad()
    def _after_update(self, batch: Transitions | None) -> None:
        """The gains follow the prompts' values, or in sessions the errors, slowly."""
        gain, members = self.settings.gain, len(self.gain_K)
        value_K, error_K, counts = torch.zeros(members), torch.zeros(members), {"prompts": 0.0, "actions": 0.0}
        if batch is not None:
            found = self.form.predict(self.target, batch)
            value_K = found.value_SK[batch.view.first_state_B].cpu().sum(0)
            error_K = self._errors(found, found, batch, self._rewards(batch)).cpu().sum(0)
            counts = {"prompts": float(len(batch.view.actions_B)), "actions": float(len(batch.view.state_A))}
        named = {f"value {k:03d}": float(value_K[k]) for k in range(members)}
        named |= {f"error {k:03d}": float(error_K[k]) for k in range(members)}
        total = sum_numbers(named | counts, self.device)
        summed = {what: torch.tensor([total[f"{what} {k:03d}"] for k in range(members)], dtype=torch.float64)
                  for what in ("value", "error")}  # fmt: skip
        self.prompt_value_K = summed["value"] / max(total["prompts"], 1.0)
        if gain.estimator != "rvi":
            return
        if gain.sessions:
            self.gain_K = session_gain(self.gain_K, summed["error"][None] / max(total["actions"], 1.0), gain.rate)
        else:
            self.gain_K = anchored_gain(self.gain_K, self.prompt_value_K[None], gain.rate)

    @torch.no_grad()
    def _judge(self, fresh: Transitions | None) -> None:
        """Losses of all members on new episodes, and what the policy earned for its cost."""
        members = len(self.gain_K)
        loss_K = torch.zeros(members, dtype=torch.float64)
        sums = dict.fromkeys(("actions", "reward", "cost", "episodes"), 0.0)
        if fresh is not None:
            own = self.form.predict(self.online, fresh)
            loss_K = self.form.losses(own, own, fresh, self._rewards(fresh)).double().cpu().sum(0)
            sums = {
                "actions": float(len(fresh.reward_A)), "reward": float(fresh.reward_A.sum()),
                "cost": float(self._total_cost(fresh).sum()), "episodes": float(len(fresh.episodes)),
            }  # fmt: skip
        names = [f"loss {k:03d}" for k in range(members)]
        totals = sum_numbers(sums | dict(zip(names, loss_K.tolist(), strict=True)), self.device)
        self.fresh_loss_K = self.fresh_loss_K + torch.tensor([totals[name] for name in names], dtype=torch.float64)
        self.fresh_actions += totals["actions"]
        if totals["cost"] > 0:
            self.renewal.update(totals["reward"] / totals["episodes"], totals["cost"] / totals["episodes"])

"""The critic of the optimistic actor-critic: an ensemble that learns from every episode, and the frozen copy of it that
guides the policy until enough has been learned to exchange it."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.algorithms.mdp_views import ActionView
from rlhf.algorithms.optimism import Optimism, confidence_set, mex_weight, set_radius
from rlhf.algorithms.switching import SwitchController, set_tolerance, train_until_member
from rlhf.algorithms.value_targets import polyak_update
from rlhf.config.lengths import most_completion_tokens
from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.config.recipe import RecipeConfig
from rlhf.config.rewards import environment_weight
from rlhf.data.episodes import Episode
from rlhf.data.types import Sample
from rlhf.models.packing import TrainingSequence
from rlhf.training.checkpoint import part_of, prefixed
from rlhf.training.collectives import sum_gradients, sum_numbers
from rlhf.training.critics.calibration import calibration
from rlhf.training.critics.excess import excess
from rlhf.training.critics.forms import CriticForm, Predictions
from rlhf.training.critics.memory import CriticMemory
from rlhf.training.critics.reference_reader import ReferenceReader
from rlhf.training.critics.state_novelty import StateNovelty
from rlhf.training.critics.transitions import Transitions, episode_of, transitions_of
from rlhf.training.guards import TrainingStopped

NETWORKS = ("online", "target", "frozen")


class Guidance(NamedTuple):
    """What the policy is told: advantages of what was done, values of the states, and how far the members disagree."""

    advantage_A: Tensor
    value_S: Tensor
    spread_S: Tensor


class OptimisticCritic:
    """Values are of the reference's hidden states, so neither the policy nor its updates move what the critic stands
    on. `offline`: this rank's share of the episodes that others made. Collective over ranks; each keeps the episodes
    that it made.
    """

    def __init__(
        self, reader: ReferenceReader, form: CriticForm, hidden: int, config: RecipeConfig, settings: OptimisticConfig,
        accelerator: Accelerator, offline: Sequence[Episode] = (),
    ) -> None:  # fmt: skip
        self.reader, self.form, self.config, self.settings = reader, form, config, settings
        self.device = accelerator.device
        ensemble, switch, seed = settings.ensemble, settings.switch, config.run.seed
        self.online = form.make_network().to(self.device)
        self.target, self.frozen = copy.deepcopy(self.online), copy.deepcopy(self.online)
        self.optimizer = torch.optim.AdamW(self.online.parameters(), lr=ensemble.lr, weight_decay=0.01)
        self.memory = CriticMemory(settings, seed, config.batch.steps * ensemble.updates, offline)
        self.novelty = StateNovelty(hidden, switch, most_completion_tokens(config), seed, self.device)
        low, high = settings.value_bounds
        # the papers fix the threshold beforehand, by the number of actions to come; a run that goes on for longer than
        # it was first asked to must not change it
        actions = ensemble.buffer_episodes * self._actions_of_the_longest()
        self.tolerance = set_tolerance(high - low, actions, switch.tolerance)
        threshold = switch.multiple * self.tolerance if switch.kind == "excess" else switch.nats
        self.controller = SwitchController(
            switch.kind, threshold=threshold, buckets=switch.buckets, min_iters=switch.min_steps,
            max_iters=switch.max_steps,
        )  # fmt: skip
        optimism = settings.optimism
        scale = optimism.bonus_scale * (high - low if optimism.kind == "elliptic" else 1.0)
        self.optimism = Optimism(optimism.kind, scale, optimism.temperature, low, high)
        self.in_set_K = torch.ones(ensemble.members, dtype=torch.bool)
        self.updates, self.actions = 0, 0
        self.metrics: dict[str, float] = {}
        self._count(offline)

    @property
    def epoch(self) -> int:
        """Exchanges so far."""
        return self.controller.switches

    def read(self, samples: Sequence[Sample]) -> Transitions | None:
        """Of graded samples with tokens: one forward pass of the reference, collective where that is sharded. None
        where there are no samples."""
        readings = self.reader([TrainingSequence(s.prompt.token_ids, s.completion_ids) for s in samples])
        ensemble = self.settings.ensemble
        episodes = [
            episode_of(
                sample, reading, self.settings.actions, name=f"{self.controller.iteration}:{sample.id}",
                epoch=self.epoch, members=ensemble.members, bootstrap=ensemble.bootstrap, seed=self.config.run.seed,
                turn_weight=environment_weight(self.config.rewards),
            )
            for sample, reading in zip(samples, readings, strict=True)
        ]  # fmt: skip
        return self.transitions(episodes) if episodes else None

    def transitions(self, episodes: Sequence[Episode]) -> Transitions:
        """Of at least one episode that was read."""
        with_candidates = self.settings.ensemble.values_tokens
        return transitions_of(episodes, self.settings.actions, self.device, with_candidates=with_candidates)

    def learn(self, fresh: Transitions | None) -> None:
        """Keep the episodes, count what is new in them, and learn from all that is kept. `fresh`: what was read of this
        step's samples; None where this rank has none.

        Raises TrainingStopped at a loss that is not finite.
        """
        self.metrics = self._calibration(fresh)
        episodes = () if fresh is None else fresh.episodes
        self.memory.add(episodes)
        nats = self._count(episodes)
        first = self.settings.ensemble.pretrain_updates if self.updates == 0 else 0
        losses = [self._step(self._replayed()) for _ in range(first + self.settings.ensemble.updates)]
        self.metrics |= {
            "critic/loss": sum(losses) / len(losses), "switch/nats_gained": nats,
            "critic/episodes": sum_numbers({"n": len(self.memory)}, self.device)["n"],
        }  # fmt: skip

    def exchange(self) -> bool:
        """Give the policy the critic that has learned on, where the rule says so; whether it did."""
        is_excess = self.settings.switch.kind == "excess"
        found = self._excess(self.frozen) if is_excess and self.controller.is_due() else None
        decision = self.controller.decide(found)
        self.metrics |= {
            "switch/exchanged": 0.0, "switch/forced": float(decision.cause == "forced"),
            "switch/statistic": decision.statistic, "switch/threshold": decision.threshold,
        }  # fmt: skip
        if decision.cause is None:
            return False
        if is_excess and not self._joins_the_set(found):
            self.controller.refused()
            self.metrics["switch/refused"] = 1.0
            return False
        self.frozen.load_state_dict(self.online.state_dict())
        if self.settings.optimism.kind == "max_in_set":
            self.in_set_K = self._confidence_set()
        event = self.controller.switched()
        self.metrics |= {"switch/exchanged": 1.0, "switch/epoch_length": float(event.epoch_length)}
        return True

    @torch.no_grad()
    def guidance(self, batch: Transitions) -> Guidance:
        """By the frozen critic, optimistically; on the CPU."""
        spread_S = self.form.predict(self.frozen, batch).value_SK.std(-1)
        guide = self._guide(self.frozen, batch)
        advantage_A, value_S = self.form.advantages(guide, batch, self._guide_rewards(self.frozen, batch)[:, 0])
        return Guidance(advantage_A.cpu(), value_S.cpu(), spread_S.cpu())

    def kept_episodes(self, count: int, with_offline: bool) -> list[Episode]:
        """`count` kept episodes of the newest epoch, half of them offline ones where asked for and there are any."""
        return self.memory.buffer.newest(self.updates, count, offline=with_offline) if count else []

    @torch.no_grad()
    def token_values(self, batch: Transitions) -> Tensor:
        """Q_opt of the frozen critic for the candidates of every state, (S, m). Needs values of tokens."""
        return self._guide(self.frozen, batch).q_SKm[:, 0]

    @torch.no_grad()
    def candidate_values(self, state_SD: Tensor, id_Sm: Tensor, logp_Sm: Tensor) -> Tensor:
        """As `token_values`, at states that no episode holds, with candidates of one's own choice."""
        found = self.form.predict_candidates(self.frozen, state_SD.to(self.device), id_Sm, logp_Sm)
        return self._as_one(self.frozen, found).q_SKm[:, 0]

    def outcome(self, batch: Transitions) -> Tensor:
        """What episodes earned, as the guiding critic counts it; (B,)."""
        return batch.outcome_B

    def price(self, view: ActionView) -> Tensor:
        """What each action costs a member besides its reward, (A, 1) or (A, K). Nothing, where episodes count."""
        return torch.zeros(len(view.state_A), 1)

    def state_tensors(self) -> dict[str, Tensor]:
        """The three ensembles by name."""
        parts = [prefixed(f"{name}.", getattr(self, name).state_dict()) for name in NETWORKS]
        return {name: tensor for part in parts for name, tensor in part.items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """What `state_tensors` gave."""
        for name in NETWORKS:
            getattr(self, name).load_state_dict(part_of(tensors, f"{name}."))

    def sharded_weights(self) -> dict[str, Any]:
        """Nothing: the ensembles are small."""
        return {}

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer, the counters, the counted features and the episodes of all ranks. Collective."""
        return {
            "optimizer": self.optimizer.state_dict(), "updates": self.updates, "actions": self.actions,
            "novelty": self.novelty.state_dict(), "controller": self.controller.state_dict(),
            "in_set_K": self.in_set_K, "memory": self.memory.state_dict(),
        }  # fmt: skip

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """What `optimizer_state` gave. Raises CheckpointError where there are other ranks than then."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.memory.load_state_dict(state["memory"])
        self.updates, self.actions, self.in_set_K = state["updates"], state["actions"], state["in_set_K"]
        self.novelty.load_state_dict(state["novelty"])
        self.controller.load_state_dict(state["controller"])

    def _step(self, batch: Transitions | None) -> float:
        """One step of the ensemble; the mean loss over all ranks."""
        self.optimizer.zero_grad(set_to_none=True)
        summed = count = torch.zeros((), device=self.device)
        online = None
        if batch is not None:
            online = self.form.predict(self.online, batch)
            with torch.no_grad():
                slow = self.form.predict(self.target, batch)
            learns_AK = batch.in_bootstrap_AK.to(self.device)
            losses_AK = self.form.losses(online, slow, batch, self._rewards(batch))
            summed, count = (losses_AK * learns_AK).sum(), learns_AK.sum()
        total = sum_numbers({"loss": float(summed.detach()), "count": float(count)}, self.device)
        if batch is not None:
            loss = summed / max(total["count"], 1.0)
            if self._mex_weight:
                weight = mex_weight(self._mex_weight, len(self.memory)) / self.memory.ranks
                loss = loss - weight * online.value_SK[batch.view.first_state_B].mean()
            loss.backward()
        sum_gradients(list(self.online.parameters()))
        mean = total["loss"] / max(total["count"], 1.0)
        if not math.isfinite(mean):
            raise TrainingStopped(
                f"the critic's loss is {mean}: lower algorithm.ensemble.lr, and check that rewards lie within "
                "algorithm.actions.bounds. The last checkpoint is untouched"
            )
        self.optimizer.step()
        polyak_update(self.target, self.online, self.settings.ensemble.polyak)
        self._after_update(batch)
        self.updates += 1
        return mean

    def _replayed(self, purpose: str = "") -> Transitions | None:
        """The next critic step's episodes, or those of one step of another fit; None where this rank has none."""
        episodes = self.memory.batch(self.updates, purpose)
        return self.transitions(episodes) if episodes else None

    @property
    def _mex_weight(self) -> float:
        return self.settings.optimism.weight if self.settings.optimism.kind == "mex" else 0.0

    def _own_outcome(self, batch: Transitions) -> Tensor:
        """What episodes earned, as each member counts it, (B, K) or (B, 1)."""
        return batch.outcome_B[:, None]

    def _rewards(self, batch: Transitions) -> Tensor:
        """What each member counts an action to earn, (A, K)."""
        earned_A1 = (batch.reward_A + self._bonus(batch))[:, None]
        return (earned_A1 - self.price(batch.view)).to(self.device).expand(-1, self.online.members)

    def _guide_rewards(self, network: nn.Module, batch: Transitions) -> Tensor:
        """The same for the critic that guides the policy, or would with the values of `network`, (A, 1)."""
        return (batch.reward_A + self._bonus(batch))[:, None].to(self.device)

    def _bonus(self, batch: Transitions) -> Tensor:
        """What an action earns by being new (elliptic), (A,), on the CPU."""
        if self.settings.optimism.kind != "elliptic":
            return torch.zeros(len(batch.view.state_A))
        return self.optimism.bonus * self.novelty.width(batch)[batch.view.next_state_A]

    def _optimism_needs(self, states: int) -> dict[str, Tensor]:
        kind = self.settings.optimism.kind
        if kind == "elliptic":
            # the bonus is in the rewards, and so in the values, already
            return {"width_Nm": torch.zeros(states, device=self.device)}
        return {"in_set_K": self.in_set_K.to(self.device)} if kind == "max_in_set" else {}

    def _guide(self, network: nn.Module, batch: Transitions) -> Predictions:
        """The optimistic values of `network` as of one member."""
        return self._as_one(network, self.form.predict(network, batch))

    def _as_one(self, network: nn.Module, found: Predictions) -> Predictions:
        needs = self._optimism_needs(len(found.value_SK))
        return Predictions(
            *(None if part is None else self.optimism(part, **needs).unsqueeze(1) for part in found)
        )

    def _excess(self, network: nn.Module) -> float:
        """Of the critic that `network` would make. Collective."""

        @torch.no_grad()
        def guide(batch: Transitions) -> Predictions:
            return self._guide(network, batch)

        held_out = self._held_out()
        return excess(
            self.form, guide, self.online, train=lambda step: self._replayed(f"refit {step}: "), held_out=held_out,
            reward_of=lambda batch: self._guide_rewards(network, batch), actions=self.actions,
            steps=self.settings.switch.refit_steps, lr=self.settings.ensemble.lr, device=self.device,
        )  # fmt: skip

    def _joins_the_set(self, frozen_excess: float) -> bool:
        """Train the learning critic until it fits; whether it fits better than the frozen one."""
        found = train_until_member(
            lambda: self._step(self._replayed()), lambda: self._excess(self.online), tolerance=self.tolerance,
            max_steps=self.settings.switch.member_steps,
        )  # fmt: skip
        self.metrics["switch/excess_of_next"] = found
        return found < frozen_excess

    @torch.no_grad()
    def _confidence_set(self) -> Tensor:
        """Members that fit unseen episodes about as well as the best one, (K,)."""
        sums_K, actions, batch = torch.zeros(self.online.members), 0.0, self._held_out()
        if batch is not None:
            own = self.form.predict(self.online, batch)
            sums_K = self.form.losses(own, own, batch, self._rewards(batch)).sum(0).cpu()
            actions = float(len(batch.view.state_A))
        names = [f"{k:03d}" for k in range(len(sums_K))]
        total = sum_numbers(dict(zip(names, sums_K.tolist(), strict=True)) | {"actions": actions}, self.device)
        loss_K = torch.tensor([total[name] for name in names]) / max(total["actions"], 1.0)
        low, high = self.settings.value_bounds
        return confidence_set(loss_K, self.actions, set_radius(high - low, len(names), self.actions))

    def _held_out(self) -> Transitions | None:
        """Episodes that nobody learns from; None where this rank has none."""
        return self.transitions(list(self.memory.held_out)) if len(self.memory.held_out) else None

    def _after_update(self, batch: Transitions | None) -> None:
        """After each critic step; collective."""

    def _count(self, episodes: Sequence[Episode]) -> float:
        """Count the actions of new episodes of all ranks, once each; the nats that they brought."""
        batch = self.transitions(episodes) if len(episodes) else None
        variance_A = None
        if batch is not None and self.settings.switch.kind == "infogain":
            with torch.no_grad():
                found = self.form.predict(self.online, batch)
                variance_A = self.form.action_values(found, batch, self._rewards(batch)).var(1).cpu()
        low, high = self.settings.value_bounds
        counted = self.novelty.add(batch, variance_A, high - low)
        self.actions += len(counted.nats_A)
        if self.settings.switch.kind != "excess":
            self.controller.gain(counted.nats_A, counted.bucket_A)
        return float(counted.nats_A.sum())

    def _actions_of_the_longest(self) -> int:
        actions, environment = self.settings.actions, self.config.environment
        if actions.view == "turn":
            return 1 if environment is None else environment.turns
        longest = most_completion_tokens(self.config)
        return longest if actions.view == "token" else math.ceil(longest / actions.chunk_tokens)

    @torch.no_grad()
    def _calibration(self, fresh: Transitions | None) -> dict[str, float]:
        if fresh is None:
            return calibration(None, None, self.device)
        value_BK = self.form.predict(self.online, fresh).value_SK[fresh.view.first_state_B].cpu()
        return calibration(value_BK, self._own_outcome(fresh), self.device)

"""The critic of the optimistic actor-critic: an ensemble that learns from every episode, and the frozen copy of it that
guides the policy until enough has been learned to exchange it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from rlhf.algorithms.elliptic import GramMatrices
from rlhf.algorithms.mdp_views import ActionView, is_done, outcome_rewards, view_actions
from rlhf.algorithms.optimism import Optimism
from rlhf.algorithms.switching import SwitchController
from rlhf.algorithms.value_targets import expectile_losses, polyak_update
from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.config.recipe import RecipeConfig
from rlhf.data.episodes import Episode
from rlhf.data.replay_buffer import ReplayBuffer
from rlhf.data.seeds import derive_seed
from rlhf.data.types import Sample
from rlhf.models.frozen_state_critic import FrozenStateCritic
from rlhf.models.packing import PackedBatch, TrainingSequence, micro_batches, pack
from rlhf.training.collectives import gather_lists, rank_of_world, sum_gradients, sum_numbers
from rlhf.training.guards import TrainingStopped

PREFIX = "critic."
NETWORKS = ("online", "target", "frozen")


@dataclass(frozen=True, slots=True)
class Transitions:
    """Actions of B replayed episodes: hidden states of the prompts, before and behind each action, what it earned,
    whether it ended its episode, and which members learn from it."""

    view: ActionView
    prompt_BD: Tensor
    here_AD: Tensor
    next_AD: Tensor
    reward_A: Tensor
    done_A: Tensor
    learns_AK: Tensor


class OptimisticCritic:
    """`states_of`: final hidden states of a packed batch under the reference policy, without gradients. Values are of
    these, so neither the policy nor its updates move what the critic stands on. Collective over ranks; each rank keeps
    the episodes that it made.
    """

    def __init__(
        self, states_of: Callable[[PackedBatch], Tensor], hidden: int, config: RecipeConfig,
        settings: OptimisticConfig, accelerator: Accelerator,
    ) -> None:  # fmt: skip
        self.states_of, self.config, self.settings, self.device = states_of, config, settings, accelerator.device
        ensemble, seed = settings.ensemble, config.run.seed
        self.online = FrozenStateCritic(
            hidden, members=ensemble.members, bounds=settings.value_bounds, prior_scale=ensemble.prior_scale,
            initial_share=ensemble.initial_share, seed=seed,
        ).to(self.device)  # fmt: skip
        self.target, self.frozen = copy.deepcopy(self.online), copy.deepcopy(self.online)
        self.optimizer = torch.optim.AdamW(self.online.parameters(), lr=ensemble.lr, weight_decay=0.01)
        rank, self.ranks = rank_of_world()
        self.buffer = ReplayBuffer(
            seed=derive_seed(seed, "replay", rank), max_episodes=ensemble.buffer_episodes
        )
        generator = torch.Generator().manual_seed(derive_seed(seed, "features") % 2**63)
        features = settings.switch.features
        self.projection_DP = torch.randn(hidden, features, generator=generator).to(self.device)
        self.seen = GramMatrices(features, buckets=1)
        switch = settings.switch
        self.controller = SwitchController(
            "logdet", threshold=switch.nats, min_iters=switch.min_steps, max_iters=switch.max_steps
        )
        low, high = settings.value_bounds
        optimism = settings.optimism
        self.optimism = Optimism(optimism.kind, optimism.bonus_scale, optimism.temperature, low, high)
        self.updates = 0
        self.metrics: dict[str, float] = {}

    def view(self, lengths: Sequence[int]) -> ActionView:
        """The actions of completions with so many tokens."""
        return view_actions(self.settings.actions.view, lengths, chunk_tokens=self.settings.actions.chunk_tokens)

    def states(self, sequences: Sequence[TrainingSequence], view: ActionView) -> Tensor:
        """Hidden states (S, D) of the view's states, the one behind a completion's last token among them."""
        # one more token, so that the last one is forwarded; what it is, no state sees
        longer = [TrainingSequence(s.prompt_ids, (*s.completion_ids, s.completion_ids[-1])) for s in sequences]
        parts: list[Tensor] = [torch.empty(0)] * len(longer)
        for members in micro_batches(longer, self.config.batch.tokens_per_micro_batch):
            chosen = [longer[index] for index in members]
            hidden_ND = self.states_of(pack(chosen).to(self.device)).float()
            for index, rows in zip(members, hidden_ND.split([len(s.completion_ids) for s in chosen]), strict=True):
                parts[index] = rows[view.position_S[view.sequence_S == index].to(self.device)]
        return torch.cat(parts)

    def learn(self, samples: Sequence[Sample]) -> None:
        """Keep the samples, count what is new in them, and learn from all that is kept.

        Raises TrainingStopped at a loss that is not finite.
        """
        self.buffer.add(self._episode(sample) for sample in samples if sample.completion_ids)
        phi_AP = torch.cat(gather_lists([self._features(samples)]))
        nats_A = self.seen.add(phi_AP, torch.zeros(len(phi_AP), dtype=torch.long))
        self.controller.gain(nats_A)
        losses = self._fit()
        self.metrics = {
            "critic/loss": sum(losses) / len(losses), "critic/episodes": float(len(self.buffer.online)),
            "switch/nats_gained": float(nats_A.sum()),
        }  # fmt: skip

    @property
    def epoch(self) -> int:
        """Exchanges so far."""
        return self.controller.switches

    def exchange(self) -> bool:
        """Give the policy the critic that has learned on, where the rule says so; whether it did."""
        decision = self.controller.decide()
        self.metrics |= {
            "switch/exchanged": float(decision.cause is not None), "switch/forced": float(decision.cause == "forced"),
            "switch/nats": decision.statistic,
        }  # fmt: skip
        if decision.cause is None:
            return False
        self.frozen.load_state_dict(self.online.state_dict())
        self.controller.switched()
        return True

    @torch.no_grad()
    def guidance(self, state_SD: Tensor) -> Tensor:
        """The frozen critic's optimistic value of each state; (S,)."""
        value_SK = self.frozen(state_SD)
        self.metrics["critic/spread"] = float(value_SK.std(-1).mean())
        return self.optimism(value_SK)

    def ends(self, view: ActionView, is_cut: Sequence[bool]) -> Tensor:
        """Whether each action ends its episode; (A,) bool. `is_cut`: completions that hit the token limit."""
        goes_on = self.settings.actions.truncation == "bootstrap"
        return is_done(view, torch.tensor([goes_on and cut for cut in is_cut]))

    def price(self, view: ActionView) -> Tensor:
        """What each action costs besides its reward; (A,). Nothing, where episodes are what counts."""
        return torch.zeros(len(view.state_A))

    def state_tensors(self) -> dict[str, Tensor]:
        """The three ensembles by name."""
        networks = {
            f"{PREFIX}{name}.{key}": tensor.detach()
            for name in NETWORKS for key, tensor in getattr(self, name).state_dict().items()
        }  # fmt: skip
        return networks

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """What `state_tensors` gave."""
        named = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
        for name in NETWORKS:
            own = {key.removeprefix(f"{name}."): t for key, t in named.items() if key.startswith(f"{name}.")}
            getattr(self, name).load_state_dict(own)

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer, the counters, the counted features and this rank's episodes."""
        return {
            "optimizer": self.optimizer.state_dict(), "buffer": self.buffer.state_dict(), "updates": self.updates,
            "seen": self.seen.state_dict(), "controller": self.controller.state_dict(),
        }  # fmt: skip

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """What `optimizer_state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.buffer.load_state_dict(state["buffer"])
        self.updates = state["updates"]
        self.seen.load_state_dict(state["seen"])
        self.controller.load_state_dict(state["controller"])

    def _fit(self) -> list[float]:
        """Critic steps on one batch of episodes, whose states are forwarded once."""
        ensemble = self.settings.ensemble
        share = max(1, ensemble.episodes // self.ranks)
        has_any = len(self.buffer.online) > 0
        batch = self._replayed(self.buffer.batch(self.updates, share).episodes) if has_any else None
        losses = []
        for _ in range(ensemble.updates):
            self.optimizer.zero_grad(set_to_none=True)
            summed = count = torch.zeros((), device=self.device)
            if batch is not None:
                losses_AK = expectile_losses(self.online(batch.here_AD), self._targets(batch), ensemble.expectile)
                summed, count = (losses_AK * batch.learns_AK).sum(), batch.learns_AK.sum()
            total = sum_numbers({"loss": float(summed.detach()), "count": float(count)}, self.device)
            if batch is not None:
                (summed / max(total["count"], 1.0)).backward()
            sum_gradients(list(self.online.parameters()))
            loss = total["loss"] / max(total["count"], 1.0)
            if not np.isfinite(loss):
                raise TrainingStopped(
                    f"the critic's loss is {loss}: lower algorithm.ensemble.lr, and check that rewards lie within "
                    "algorithm.actions.bounds. The last checkpoint is untouched"
                )
            self.optimizer.step()
            polyak_update(self.target, self.online, ensemble.polyak)
            self._after_update(batch)
            self.updates += 1
            losses.append(loss)
        return losses

    def _replayed(self, episodes: Sequence[Episode]) -> Transitions:
        sequences = [TrainingSequence(tuple(e.prompt_ids.tolist()), tuple(e.token_ids.tolist())) for e in episodes]
        view = self.view([len(sequence.completion_ids) for sequence in sequences])
        state_SD = self.states(sequences, view)
        outcome_B = torch.tensor([episode.episode_return for episode in episodes], dtype=torch.float32)
        learns_BK = torch.tensor([episode.in_bootstrap for episode in episodes], dtype=torch.float32)
        return Transitions(
            view=view, prompt_BD=state_SD[(view.position_S == 0).to(self.device)],
            here_AD=state_SD[view.state_A.to(self.device)], next_AD=state_SD[view.next_state_A.to(self.device)],
            reward_A=outcome_rewards(view, outcome_B).to(self.device),
            done_A=self.ends(view, [episode.truncated for episode in episodes]).to(self.device),
            learns_AK=learns_BK[view.sequence_A].to(self.device),
        )  # fmt: skip

    @torch.no_grad()
    def _targets(self, batch: Transitions) -> Tensor:
        """r + V(next state) of each member's own slow copy; (A, K)."""
        next_AK = self.target(batch.next_AD).clamp(*self.online.bounds)
        return batch.reward_A[:, None] + torch.where(batch.done_A[:, None], 0.0, next_AK)

    def _after_update(self, batch: Transitions | None) -> None:
        """After each critic step; collective."""

    def _features(self, samples: Sequence[Sample]) -> Tensor:
        """Random directions of what each action led to, of length 1; (A, P), on the CPU."""
        sequences = [TrainingSequence(s.prompt.token_ids, s.completion_ids) for s in samples if s.completion_ids]
        if not sequences:
            return torch.empty(0, self.settings.switch.features)
        view = self.view([len(sequence.completion_ids) for sequence in sequences])
        state_AD = self.states(sequences, view)[view.next_state_A.to(self.device)]
        normal_AD = functional.layer_norm(state_AD, state_AD.shape[-1:])
        return functional.normalize(normal_AD @ self.projection_DP, dim=-1).cpu()

    def _episode(self, sample: Sample) -> Episode:
        rewards = np.zeros(len(sample.completion_ids), dtype=np.float32)
        rewards[-1] = sample.reward
        name = f"{sample.policy_version}:{sample.id}"
        ensemble = self.settings.ensemble
        generator = torch.Generator().manual_seed(derive_seed(self.config.run.seed, "bootstrap", name) % 2**63)
        learns_K = torch.rand(ensemble.members, generator=generator) < ensemble.bootstrap
        return Episode(
            id=name, prompt_id=sample.prompt.id, prompt_ids=np.array(sample.prompt.token_ids),
            token_ids=np.array(sample.completion_ids), logps=np.array(sample.logps), rewards=rewards,
            policy_version=sample.policy_version, epoch=self.epoch, truncated=sample.truncated,
            in_bootstrap=tuple(learns_K.tolist()),
        )  # fmt: skip

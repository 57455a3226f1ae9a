"""The critic of the optimistic actor-critic: an ensemble that learns from every episode, and the frozen copy of it that
guides the policy until enough has been learned to exchange it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from rlhf.algorithms.elliptic import GramMatrices
from rlhf.algorithms.mdp_views import ActionView, is_done, outcome_rewards, view_actions
from rlhf.algorithms.optimism import Optimism
from rlhf.algorithms.switching import SwitchController
from rlhf.algorithms.value_targets import end_values, expectile_losses, one_step_targets, polyak_update
from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.config.recipe import RecipeConfig
from rlhf.data.episodes import Episode
from rlhf.data.replay_buffer import ReplayBuffer
from rlhf.data.seeds import derive_seed
from rlhf.data.types import Sample
from rlhf.models.frozen_state_critic import FrozenStateCritic
from rlhf.models.packing import PackedBatch, TrainingSequence, micro_batches, pack
from rlhf.training.checkpoint import CheckpointError, part_of, prefixed
from rlhf.training.collectives import gather_lists, rank_of_world, sum_gradients, sum_numbers
from rlhf.training.guards import TrainingStopped

NETWORKS = ("online", "target", "frozen")


@dataclass(frozen=True, slots=True)
class Transitions:
    """The actions of B completions: hidden states of all their states under the reference, what each action earned, and
    whether it ended its episode. All but the states are on the CPU."""

    view: ActionView
    state_SD: Tensor
    reward_A: Tensor
    done_A: Tensor

    @property
    def outcome_B(self) -> Tensor:
        return self.reward_A[self.view.last_action_B]


class Guidance(NamedTuple):
    """What the policy is told each state is worth, and how far the members disagree about it."""

    value_S: Tensor
    spread_S: Tensor


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
        self.rank, self.ranks = rank_of_world()
        self.buffer = ReplayBuffer(
            seed=derive_seed(seed, "replay", self.rank), max_episodes=ensemble.buffer_episodes
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

    def read(self, samples: Sequence[Sample]) -> Transitions:
        """Of graded samples with tokens, at least one."""
        sequences = [TrainingSequence(sample.prompt.token_ids, sample.completion_ids) for sample in samples]
        return self._transitions(sequences, [s.reward for s in samples], [s.truncated for s in samples])

    def learn(self, samples: Sequence[Sample], fresh: Transitions | None) -> None:
        """Keep the samples, count what is new in them, and learn from all that is kept. `fresh`: what was read of
        them; None where this rank has none.

        Raises TrainingStopped at a loss that is not finite.
        """
        self.buffer.add(self._episode(sample) for sample in samples)
        phi_AP = torch.cat(gather_lists([self._features(fresh)]))
        nats_A = self.seen.add(phi_AP, torch.zeros(len(phi_AP), dtype=torch.long))
        self.controller.gain(nats_A)
        losses = self._fit()
        self.metrics = {
            "critic/loss": sum(losses) / len(losses), "switch/nats_gained": float(nats_A.sum()),
            "critic/episodes": sum_numbers({"n": len(self.buffer.online)}, self.device)["n"],
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
    def guidance(self, state_SD: Tensor) -> Guidance:
        """By the frozen critic, optimistically."""
        value_SK = self.frozen(state_SD)
        return Guidance(self.optimism(value_SK).cpu(), value_SK.std(-1).cpu())

    def price(self, view: ActionView) -> Tensor:
        """What each action costs besides its reward; (A,). Nothing, where episodes are what counts."""
        return torch.zeros(len(view.state_A))

    def state_tensors(self) -> dict[str, Tensor]:
        """The three ensembles by name."""
        parts = [prefixed(f"{name}.", getattr(self, name).state_dict()) for name in NETWORKS]
        return {name: tensor for part in parts for name, tensor in part.items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """What `state_tensors` gave."""
        for name in NETWORKS:
            getattr(self, name).load_state_dict(part_of(tensors, f"{name}."))

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer, the counters, the counted features and the episodes of all ranks. Collective."""
        return {
            "optimizer": self.optimizer.state_dict(), "updates": self.updates, "seen": self.seen.state_dict(),
            "controller": self.controller.state_dict(), "buffers": gather_lists([self.buffer.state_dict()]),
        }  # fmt: skip

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """What `optimizer_state` gave. Raises CheckpointError where there are other ranks than then."""
        if len(state["buffers"]) != self.ranks:
            raise CheckpointError(
                f"the checkpoint holds the critic's episodes of {len(state['buffers'])} ranks, now there are "
                f"{self.ranks}: resume with {len(state['buffers'])} ranks"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.buffer.load_state_dict(state["buffers"][self.rank])
        self.updates = state["updates"]
        self.seen.load_state_dict(state["seen"])
        self.controller.load_state_dict(state["controller"])

    def _fit(self) -> list[float]:
        """Critic steps on one batch of episodes, whose states are forwarded once."""
        ensemble = self.settings.ensemble
        replayed = self._replayed() if len(self.buffer.online) else None
        losses = []
        for _ in range(ensemble.updates):
            self.optimizer.zero_grad(set_to_none=True)
            summed = count = torch.zeros((), device=self.device)
            if replayed is not None:
                batch, learns_AK = replayed
                value_AK = self.online(batch.state_SD[batch.view.state_A])
                losses_AK = expectile_losses(value_AK, self._targets(batch), ensemble.expectile)
                summed, count = (losses_AK * learns_AK).sum(), learns_AK.sum()
            total = sum_numbers({"loss": float(summed.detach()), "count": float(count)}, self.device)
            if replayed is not None:
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
            self._after_update(None if replayed is None else replayed[0])
            self.updates += 1
            losses.append(loss)
        return losses

    def _replayed(self) -> tuple[Transitions, Tensor]:
        """A batch of episodes, and which members learn from which of its actions; (A, K)."""
        share = max(1, self.settings.ensemble.episodes // self.ranks)
        episodes = self.buffer.batch(self.updates, share).episodes
        sequences = [TrainingSequence(tuple(e.prompt_ids.tolist()), tuple(e.token_ids.tolist())) for e in episodes]
        batch = self._transitions(sequences, [e.episode_return for e in episodes], [e.truncated for e in episodes])
        learns_BK = torch.tensor([episode.in_bootstrap for episode in episodes], dtype=torch.float32)
        return batch, learns_BK[batch.view.sequence_A].to(self.device)

    def _transitions(
        self, sequences: Sequence[TrainingSequence], outcomes: Sequence[float], is_cut: Sequence[bool]
    ) -> Transitions:
        """`is_cut`: completions that hit the token limit."""
        actions = self.settings.actions
        lengths = [len(sequence.completion_ids) for sequence in sequences]
        view = view_actions(actions.view, lengths, chunk_tokens=actions.chunk_tokens)
        goes_on_B = torch.tensor([actions.truncation == "bootstrap" and cut for cut in is_cut])
        return Transitions(
            view=view, state_SD=self._states(sequences, view),
            reward_A=outcome_rewards(view, torch.tensor(outcomes, dtype=torch.float32)),
            done_A=is_done(view, goes_on_B),
        )  # fmt: skip

    def _states(self, sequences: Sequence[TrainingSequence], view: ActionView) -> Tensor:
        """Hidden states (S, D) of the view's states, the one behind a completion's last token among them."""
        # one more token, so that the last one is forwarded; what it is, no state sees
        longer = [TrainingSequence(s.prompt_ids, (*s.completion_ids, s.completion_ids[-1])) for s in sequences]
        parts: list[Tensor] = [torch.empty(0)] * len(longer)
        for members in micro_batches(longer, self.config.batch.tokens_per_micro_batch):
            chosen = [longer[index] for index in members]
            hidden_ND = self.states_of(pack(chosen).to(self.device)).float()
            for index, rows in zip(members, hidden_ND.split([len(s.completion_ids) for s in chosen]), strict=True):
                parts[index] = rows[view.position_S[view.sequence_S == index]]
        return torch.cat(parts)

    @torch.no_grad()
    def _targets(self, batch: Transitions) -> Tensor:
        """r + V(next state) of each member's own slow copy; (A, K)."""
        end_value_SK = end_values(self.target(batch.state_SD), batch.view, batch.done_A)
        return one_step_targets(batch.reward_A.to(self.device), end_value_SK, batch.view)

    def _after_update(self, batch: Transitions | None) -> None:
        """After each critic step; collective."""

    def _features(self, fresh: Transitions | None) -> Tensor:
        """Random directions of what each action led to, of length 1; (A, P), on the CPU."""
        if fresh is None:
            return torch.empty(0, self.settings.switch.features)
        state_AD = fresh.state_SD[fresh.view.next_state_A]
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

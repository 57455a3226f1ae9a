"""Episodes as states, actions and rewards: what a critic learns from, made once and kept with the episode.

Suffixes: B episodes, S states, A actions, D hidden size, m candidates, K members.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rlhf.algorithms.mdp_views import ActionView, is_done, summed_rewards, view_actions
from rlhf.config.critic_ensemble import ActionViewConfig
from rlhf.data.episodes import Episode
from rlhf.data.seeds import derive_seed
from rlhf.data.token_rewards import own_token_rewards
from rlhf.data.turns import own_positions
from rlhf.data.types import Sample
from rlhf.models.packing import TrainingSequence
from rlhf.training.critics.reference_reader import ReadCompletion

STATES, REFERENCE_LOGPS = "states", "reference_logps"
CANDIDATE_IDS, CANDIDATE_LOGPS = "candidate_ids", "candidate_logps"
"""Names of what an episode keeps of the reference's reading."""


@dataclass(frozen=True, slots=True)
class Transitions:
    """The actions of B episodes. `state_SD`: float32, on the critic's device. `candidate_id_Sm`, `candidate_logp_Sm`:
    likely tokens of each state, the taken one first; None where tokens have no values. `in_bootstrap_AK`: which members
    learn from an action. All but the states and candidates are on the CPU."""

    episodes: tuple[Episode, ...]
    view: ActionView
    state_SD: Tensor
    reward_A: Tensor
    done_A: Tensor
    in_bootstrap_AK: Tensor
    candidate_id_Sm: Tensor | None = None
    candidate_logp_Sm: Tensor | None = None

    @property
    def outcome_B(self) -> Tensor:
        """Returns of the episodes."""
        return torch.tensor([episode.episode_return for episode in self.episodes], dtype=torch.float32)

    @property
    def sequences(self) -> list[TrainingSequence]:
        return [sequence_of(episode) for episode in self.episodes]


def sequence_of(episode: Episode) -> TrainingSequence:
    """An episode's token ids, all of them targets."""
    return TrainingSequence(tuple(episode.prompt_ids.tolist()), tuple(episode.token_ids.tolist()))


def view_of(actions: ActionViewConfig, episodes: Sequence[Episode]) -> ActionView:
    """The states and actions of episodes. An episode without turns is one turn."""
    lengths = [len(episode.token_ids) for episode in episodes]
    turns = [episode.turns or ((length, 0),) for episode, length in zip(episodes, lengths, strict=True)]
    return view_actions(actions.view, lengths, chunk_tokens=actions.chunk_tokens, turns=turns)


def transitions_of(
    episodes: Sequence[Episode], actions: ActionViewConfig, device: torch.device, *, with_candidates: bool
) -> Transitions:
    """Of at least one episode. Raises ValueError for an episode whose states were not read (`episode_of`)."""
    unread = [episode.id for episode in episodes if STATES not in episode.extra]
    if unread:
        raise ValueError(f"episodes without the reference's states: {unread[:4]}; make them by `episode_of`")
    view = view_of(actions, episodes)
    reward_BL = torch.zeros(len(episodes), int(view.position_S.max()))
    for row, episode in enumerate(episodes):
        reward_BL[row, : len(episode.rewards)] = torch.from_numpy(episode.rewards)
    goes_on_B = torch.tensor([actions.truncation == "bootstrap" and episode.truncated for episode in episodes])
    learns_BK = torch.tensor([episode.in_bootstrap for episode in episodes], dtype=torch.float32)
    ids = logps = None
    if with_candidates:
        ids = torch.from_numpy(np.concatenate([e.extra[CANDIDATE_IDS] for e in episodes])).long().to(device)
        logps = torch.from_numpy(np.concatenate([e.extra[CANDIDATE_LOGPS] for e in episodes])).float().to(device)
    return Transitions(
        episodes=tuple(episodes), view=view,
        state_SD=torch.from_numpy(np.concatenate([e.extra[STATES] for e in episodes])).float().to(device),
        reward_A=summed_rewards(view, reward_BL), done_A=is_done(view, goes_on_B),
        in_bootstrap_AK=learns_BK[view.sequence_A], candidate_id_Sm=ids, candidate_logp_Sm=logps,
    )  # fmt: skip


def episode_of(
    sample: Sample, reading: ReadCompletion, actions: ActionViewConfig, *, name: str, epoch: int, members: int,
    bootstrap: float, seed: int, turn_weight: float = 0.0,
) -> Episode:  # fmt: skip
    """A graded sample with at least one token, and what the reference makes of it at the states of its actions.

    `name`: unique over the run. `epoch`: exchanges so far. Members learn from it with probability `bootstrap` each.
    `turn_weight`: what the environment's rewards count in the sample's.
    """
    rewards = np.zeros(len(sample.completion_ids), dtype=np.float32)
    rewards[own_positions(sample.turns, len(rewards))] = own_token_rewards(sample, turn_weight)
    generator = torch.Generator().manual_seed(derive_seed(seed, "bootstrap", name) % 2**63)
    learns_K = torch.rand(members, generator=generator) < bootstrap
    episode = Episode(
        id=name, prompt_id=sample.prompt.id, prompt_ids=np.array(sample.prompt.token_ids),
        token_ids=np.array(sample.completion_ids), logps=np.array(sample.logps), rewards=rewards,
        policy_version=sample.policy_version, epoch=epoch, truncated=sample.truncated, turns=sample.turns,
        in_bootstrap=tuple(learns_K.tolist()),
    )  # fmt: skip
    position_S = view_of(actions, [episode]).position_S.numpy()
    extra = {STATES: reading.state_RD[position_S], REFERENCE_LOGPS: reading.logp_T}
    if reading.candidate_id_Rm is not None:
        extra[CANDIDATE_IDS] = reading.candidate_id_Rm[position_S]
        extra[CANDIDATE_LOGPS] = reading.candidate_logp_Rm[position_S].astype(np.float16)
    return replace(episode, extra=extra)


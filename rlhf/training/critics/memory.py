"""The episodes that a critic keeps: those it learns from, online and offline, and those it never does."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.data.episode_store import EpisodeStore
from rlhf.data.episodes import Episode
from rlhf.data.replay_buffer import OfflineShare, ReplayBuffer
from rlhf.data.seeds import derive_seed
from rlhf.training.checkpoint import CheckpointError
from rlhf.training.collectives import gather_lists, rank_of_world

MILLION = 10**6


class CriticMemory:
    """This rank's episodes. `steps`: critic steps of the run, over which the offline share falls. `offline`: this
    rank's share of the episodes that others made."""

    def __init__(self, settings: OptimisticConfig, seed: int, steps: int, offline: Sequence[Episode]) -> None:
        self.rank, self.ranks = rank_of_world()
        self.seed, ensemble, switch = seed, settings.ensemble, settings.switch
        holds_out = switch.kind == "excess" or settings.optimism.kind == "max_in_set"
        self.share_held_out = switch.held_out if holds_out else 0.0
        self.batch_size = max(1, ensemble.episodes // self.ranks)
        bounds = dict(max_episodes=ensemble.buffer_episodes, max_bytes=int(ensemble.buffer_gib * 2**30))
        share = OfflineShare(settings.offline.share, settings.offline.final_share, steps)
        self.buffer = ReplayBuffer(
            seed=derive_seed(seed, "replay", self.rank), share=share,
            offline=[episode for episode in offline if not self._is_held_out(episode)], **bounds,
        )  # fmt: skip
        self.held_out = EpisodeStore(**bounds)
        self.held_out.add(episode for episode in offline if self._is_held_out(episode))

    def __len__(self) -> int:
        """Of what the policy wrote."""
        return len(self.buffer.online) + len(self.held_out)

    @property
    def offline(self) -> list[Episode]:
        """Episodes that others made, held-out ones among them before the first of the policy's own."""
        return [*self.buffer.offline, *self.held_out]

    def add(self, episodes: Sequence[Episode]) -> None:
        """Keep new ones. Raises ValueError as `EpisodeStore.add`."""
        self.buffer.add(episode for episode in episodes if not self._is_held_out(episode))
        self.held_out.add(episode for episode in episodes if self._is_held_out(episode))

    def batch(self, step: int, purpose: str = "") -> list[Episode]:
        """What critic step `step` learns from, or what else is fitted then (`purpose`, one for each of its steps); none
        where nothing is kept."""
        if not len(self.buffer.online) and not self.buffer.offline:
            return []
        return self.buffer.batch(step, self.batch_size, purpose).episodes

    def state_dict(self) -> dict[str, Any]:
        """The episodes of all ranks. Collective."""
        return {"ranks": gather_lists([{"buffer": self.buffer.state_dict(), "held_out": self.held_out.state_dict()}])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave. Raises CheckpointError where there are other ranks than then."""
        if len(state["ranks"]) != self.ranks:
            raise CheckpointError(
                f"the checkpoint holds the critic's episodes of {len(state['ranks'])} ranks, now there are "
                f"{self.ranks}: resume with {len(state['ranks'])} ranks"
            )
        own = state["ranks"][self.rank]
        self.buffer.load_state_dict(own["buffer"])
        self.held_out.load_state_dict(own["held_out"])

    def _is_held_out(self, episode: Episode) -> bool:
        return derive_seed(self.seed, "held out", episode.id) % MILLION < self.share_held_out * MILLION

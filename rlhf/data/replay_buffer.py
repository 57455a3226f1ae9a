"""Which past completions a batch is made of: some of a fixed offline set, the rest of what the policy wrote itself.

Half of the online part comes from the newest epoch, half from everything stored; by default half of a batch is offline
while there is offline data, as in RLPD (arXiv 2302.02948). A batch is a pure function of (seed, step) and of what is
stored.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rlhf.data.episode_store import EpisodeStore
from rlhf.data.episodes import Episode
from rlhf.data.seeds import derive_seed

# multiples of the golden ratio's fractional part fill [0, 1) evenly
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class OfflineShare:
    """The share of offline episodes in a batch: `start` throughout, or linearly from `start` to `end` over
    `anneal_steps` and `end` from then on.

    Raises ValueError for shares outside [0, 1] or negative `anneal_steps`.
    """

    start: float = 0.5
    end: float = 0.1
    anneal_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"the offline share's {name} must be in [0, 1], got {getattr(self, name)}")
        if self.anneal_steps < 0:
            raise ValueError(f"anneal_steps must be 0 (no annealing) or more, got {self.anneal_steps}")

    def at(self, step: int) -> float:
        if self.anneal_steps == 0:
            return self.start
        return self.start + (self.end - self.start) * min(1.0, step / self.anneal_steps)

    def count(self, step: int, batch: int) -> int:
        """Offline episodes of the batch at `step`: share x batch where that is a whole number. Elsewhere one of the two
        integers next to it, each as often as it takes to have the share over many steps."""
        # 0.1 * 30 = 3.0000000000000004 is whole
        wanted = round(self.at(step) * batch, 9)
        return math.floor(wanted + (step * GOLDEN) % 1.0)


class Batch(NamedTuple):
    """Episodes of one critic step; the first `offline` of them are offline ones."""

    episodes: list[Episode]
    offline: int


class ReplayBuffer:
    """Online episodes in a bounded store, and offline ones that never change. `seed`: of the draws.

    Raises ValueError for bounds below 1 (see `EpisodeStore`) or offline ids that occur twice.
    """

    def __init__(
        self,
        *,
        seed: int,
        offline: Sequence[Episode] = (),
        share: OfflineShare = OfflineShare(),
        max_episodes: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        if len({episode.id for episode in offline}) != len(offline):
            raise ValueError("ids of the offline episodes occur twice: each episode needs its own")
        self.seed, self.share, self.offline = seed, share, tuple(offline)
        self.online = EpisodeStore(max_episodes=max_episodes, max_bytes=max_bytes)

    def add(self, episodes: Iterable[Episode]) -> list[Episode]:
        """Store what the policy wrote; returns what had to leave for it. Raises ValueError as `EpisodeStore.add`."""
        return self.online.add(episodes)

    def batch(self, step: int, size: int, purpose: str = "") -> Batch:
        """`size` episodes for critic step `step`; others for another `purpose`. An empty store's part comes from the
        other one.

        Within each part no episode is drawn twice before every one has been; the halves of the online part are drawn
        independently, so that one episode can be in both.

        Raises ValueError where nothing is stored, or for a step or size that makes no sense.
        """
        if step < 0 or size < 1:
            raise ValueError(f"cannot draw {size} episodes for step {step}: size is at least 1 and step at least 0")
        if not self.offline and not len(self.online):
            raise ValueError("the replay buffer is empty: add episodes, or give offline ones, before drawing a batch")
        offline = self.share.count(step, size) if self.offline else 0
        if not len(self.online):
            offline = size
        online = list(self.online)
        epoch = max((episode.epoch for episode in online), default=0)
        newest = [episode for episode in online if episode.epoch == epoch]
        recent = (size - offline + 1) // 2
        uniform = size - offline - recent
        parts = {"offline": (self.offline, offline), "newest": (newest, recent), "any": (online, uniform)}
        drawn = [
            episodes[index]
            for name, (episodes, count) in parts.items()
            for index in self._draw(step, purpose + name, len(episodes), count)
        ]
        return Batch(drawn, offline)

    def newest(self, step: int, size: int, *, offline: bool) -> list[Episode]:
        """`size` episodes of the newest epoch, or with `offline` half of them offline ones; fewer where there are not
        as many. No episode comes twice."""
        online = list(self.online)
        epoch = max((episode.epoch for episode in online), default=0)
        newest = [episode for episode in online if episode.epoch == epoch]
        others = min(size // 2, len(self.offline)) if offline else 0
        parts = {"actor": (newest, size - others), "actor, offline": (self.offline, others)}
        return [
            episodes[index]
            for name, (episodes, count) in parts.items()
            for index in self._draw(step, name, len(episodes), min(count, len(episodes)))
        ]

    def _draw(self, step: int, part: str, stored: int, count: int) -> list[int]:
        """`count` indices below `stored`, in rounds that hold each index once."""
        drawn: list[int] = []
        while len(drawn) < count:
            # numpy promises a stable raw stream, and none of a Generator's methods
            generator = np.random.Philox(key=derive_seed(self.seed, "replay", step, part, len(drawn)))
            order = np.argsort(generator.random_raw(stored), kind="stable")
            drawn += order[: count - len(drawn)].tolist()
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """The online store as JSON types and tensors. Offline episodes are data: a fingerprint stands for them."""
        return {"online": self.online.state_dict(), "seed": self.seed, "offline": self._fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError where the seed or the offline episodes are not those that the state was taken with."""
        for name, now in (("seed", self.seed), ("offline", self._fingerprint())):
            if state[name] != now:
                raise ValueError(
                    f"the replay buffer's {name} was {state[name]} in the checkpoint and is {now}: batches would not "
                    "go on as they were; restore the data and the seed that the run began with"
                )
        self.online.load_state_dict(state["online"])

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for episode in self.offline:
            digest.update(f"{episode.id}\x1f{episode.episode_return}\x1f".encode())
            digest.update(episode.token_ids.tobytes())
        return f"{len(self.offline)} episodes, {digest.hexdigest()}"

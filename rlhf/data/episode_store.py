"""Which episodes leave a bounded store: the oldest, but never one that stands out among those of its prompt.

A rare success is what an off-policy critic learns most from, and age says nothing about it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlhf.data.episodes import Episode, episodes_from_state, episodes_to_state

ELITE_QUANTILE = 0.95


class EpisodeStore:
    """Episodes, oldest first. `max_episodes` and `max_bytes` (arrays only) bound them; None is no bound.

    An episode whose return is above the 95th percentile of the stored ones of its prompt is never evicted. Once that
    held when one of its siblings left, it leaves after everything else: alone it has nothing left to stand out from.

    Raises ValueError for bounds below 1.
    """

    def __init__(self, *, max_episodes: int | None = None, max_bytes: int | None = None) -> None:
        for name, bound in (("max_episodes", max_episodes), ("max_bytes", max_bytes)):
            if bound is not None and bound < 1:
                raise ValueError(f"{name} must be at least 1, got {bound}; None is no bound")
        self.max_episodes, self.max_bytes = max_episodes, max_bytes
        self.evicted = 0
        self._clear()

    def _clear(self) -> None:
        self._episodes: dict[str, Episode] = {}
        self._returns: defaultdict[str, dict[str, float]] = defaultdict(dict)
        self._thresholds: dict[str, float] = {}
        self._was_elite: set[str] = set()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._episodes)

    def __iter__(self) -> Iterator[Episode]:
        return iter(self._episodes.values())

    def add(self, episodes: Iterable[Episode]) -> list[Episode]:
        """Store episodes, then evict until the bounds hold; the evicted ones.

        Raises ValueError for an id that is stored already, or an episode that alone is above `max_bytes`; nothing is
        stored then.
        """
        episodes = list(episodes)
        new: set[str] = set()
        for episode in episodes:
            if episode.id in self._episodes or episode.id in new:
                raise ValueError(f"episode {episode.id!r} is stored already: ids are unique over a run")
            if self.max_bytes is not None and episode.nbytes > self.max_bytes:
                raise ValueError(
                    f"episode {episode.id!r} has {episode.nbytes} bytes, and the store is bounded to {self.max_bytes}: "
                    "raise max_bytes"
                )
            new.add(episode.id)
        for episode in episodes:
            self._insert(episode)
        victims = self._evict()
        self.evicted += len(victims)
        return victims

    def is_elite(self, episode: Episode) -> bool:
        """Above the 95th percentile of the stored returns of its prompt."""
        return episode.episode_return > self._threshold(episode.prompt_id)

    def _evict(self) -> list[Episode]:
        """There always is one to evict: the least return of a prompt is not above any percentile of it."""
        victims: list[Episode] = []
        take_marked = False
        while self._is_full():
            for episode in list(self):
                if not self._is_full():
                    break
                if not self.is_elite(episode) and (take_marked or episode.id not in self._was_elite):
                    self._remove(episode)
                    victims.append(episode)
            take_marked = True
        return victims

    def _is_full(self) -> bool:
        if self.max_episodes is not None and len(self) > self.max_episodes:
            return True
        return self.max_bytes is not None and self.nbytes > self.max_bytes

    def _insert(self, episode: Episode) -> None:
        self._episodes[episode.id] = episode
        self._returns[episode.prompt_id][episode.id] = episode.episode_return
        self._thresholds.pop(episode.prompt_id, None)
        self.nbytes += episode.nbytes

    def _remove(self, episode: Episode) -> None:
        threshold = self._threshold(episode.prompt_id)
        siblings = self._returns[episode.prompt_id]
        self._was_elite |= {name for name, value in siblings.items() if value > threshold}
        self._was_elite.discard(episode.id)
        del self._episodes[episode.id], siblings[episode.id], self._thresholds[episode.prompt_id]
        if not siblings:
            del self._returns[episode.prompt_id]
        self.nbytes -= episode.nbytes

    def _threshold(self, prompt_id: str) -> float:
        if prompt_id not in self._thresholds:
            self._thresholds[prompt_id] = quantile(sorted(self._returns[prompt_id].values()), ELITE_QUANTILE)
        return self._thresholds[prompt_id]

    def state_dict(self) -> dict[str, Any]:
        """JSON types, and the tensors of `episodes_to_state`."""
        return {
            "episodes": episodes_to_state(list(self)),
            "was_elite": sorted(self._was_elite),
            "evicted": self.evicted,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold what `state` holds, in the same order. Raises ValueError for a damaged state."""
        episodes = episodes_from_state(state["episodes"])
        self._clear()
        for episode in episodes:
            self._insert(episode)
        self._was_elite, self.evicted = set(state["was_elite"]), state["evicted"]


def quantile(ascending: Sequence[float], share: float) -> float:
    """The quantile of sorted numbers, between two of them by linear interpolation."""
    place = share * (len(ascending) - 1)
    low, high = ascending[math.floor(place)], ascending[math.ceil(place)]
    # interpolation rounds, and equal returns must not come out above each other
    return low if low == high else low + (high - low) * (place - math.floor(place))

"""In which order prompts are taken: a position in the stream is an integer, and says everything.

Every epoch takes each prompt exactly once, in an order that is a pure function of (seed, epoch). Nothing is iterated
to resume: the position is the state. No prompt is taken twice within any `length // 3 + 1` consecutive positions, also
across the boundary of two epochs, so that a step (with its refills) of up to a third of the data has distinct prompts.
"""

from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from rlhf.data.errors import DataError
from rlhf.data.seeds import derive_seed
from rlhf.data.types import Prompt


class PromptSource(Protocol):
    """Prompts by index. `source[i]` is the same prompt whenever it is asked for."""

    name: str
    fingerprint: str
    """Differs where the prompts differ: their number, ids, token ids or gold answers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Prompt: ...


class PromptOrder:
    """Maps a position 0, 1, 2, ... to an index in [0, length); positions [e * length, (e + 1) * length) are epoch e.

    Raises ValueError for an empty source.
    """

    def __init__(self, length: int, seed: int):
        if length < 1:
            raise ValueError("there are no prompts to order")
        self.length, self.seed = length, seed
        self._epoch = lru_cache(maxsize=2)(self._permutation)
        self._raw = lru_cache(maxsize=2)(self._shuffle)

    def __call__(self, position: int) -> int:
        """The index of the prompt at `position` (>= 0)."""
        if position < 0:
            raise ValueError(f"position {position} is before the start of the stream")
        epoch, offset = divmod(position, self.length)
        return int(self._epoch(epoch)[offset])

    def _shuffle(self, epoch: int) -> np.ndarray:
        # numpy promises a stable raw stream; Generator.permutation may change between its versions and break a resume
        keys_L = np.random.Philox(key=derive_seed(self.seed, "order", epoch)).random_raw(self.length)
        return np.argsort(keys_L, kind="stable")

    def _permutation(self, epoch: int) -> np.ndarray:
        """A shuffle whose first third shares nothing with the last third of the epoch before.

        Offenders change places with prompts of the middle third, so the last third stays as shuffled: an epoch
        depends on the shuffle before it and no further back. There are always enough: of k prompts in the previous
        last third, c sit in the first third, hence at most k - c in the middle, which has k places or more.
        """
        order_L = self._raw(epoch).copy()
        third = self.length // 3
        if epoch == 0 or third == 0:
            return order_L
        is_recent_L = np.zeros(self.length, dtype=bool)
        is_recent_L[self._raw(epoch - 1)[-third:]] = True
        offenders = np.flatnonzero(is_recent_L[order_L[:third]])
        middle = third + np.flatnonzero(~is_recent_L[order_L[third:-third]])[: len(offenders)]
        order_L[offenders], order_L[middle] = order_L[middle], order_L[offenders]
        return order_L


class PromptStream:
    """Takes prompts from a source, one after the other, for ever.

    Refills of dynamic sampling simply take more; sharding over ranks is the caller's (`prompts[rank::world_size]`).
    A `take` may cross into the next epoch. Only one that is longer than a third of the source can hold a prompt twice;
    its samples then go on counting their indices.
    """

    def __init__(self, source: PromptSource, seed: int, position: int = 0):
        self.source, self.position = source, position
        self._order = PromptOrder(len(source), seed)

    @property
    def epoch(self) -> float:
        """How many epochs have been taken, e.g. 1.25."""
        return self.position / len(self.source)

    def take(self, n: int) -> list[Prompt]:
        """The next n prompts; `position` moves on by n."""
        prompts = [self.source[self._order(position)] for position in range(self.position, self.position + n)]
        self.position += n
        return prompts

    def upcoming(self, n: int) -> list[int]:
        """Indices in the source of the next n, each once, in ascending order; nothing is taken."""
        if n >= 2 * len(self.source):
            return list(range(len(self.source)))
        return sorted({self._order(position) for position in range(self.position, self.position + n)})

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable; a checkpoint needs nothing else to continue."""
        return {
            "position": self.position,
            "seed": self._order.seed,
            "length": len(self.source),
            "fingerprint": self.source.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises DataError if the prompts or the seed are not the same."""
        now = self.state_dict()
        changed = [
            f"{what} was {state[what]}, and is {now[what]}"
            for what in ("length", "fingerprint", "seed")
            if state[what] != now[what]
        ]
        if changed:
            raise DataError(
                f"the checkpoint's prompts are not those of {self.source.name}: {'; '.join(changed)}. Prompts would be "
                "lost or taken twice: restore the data, tokenizer and run.seed that the run began with, or start a "
                "run with a new run.name"
            )
        self.position = state["position"]

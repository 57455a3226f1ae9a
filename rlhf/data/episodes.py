"""What an off-policy critic remembers of one completion: ids, rewards and who wrote it, in numpy, and to a checkpoint
and back.

A completion costs about 12 bytes a token here; as tuples of Python numbers it would cost some 100.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOKEN_ARRAYS = {"token_ids": np.int32, "logps": np.float32, "rewards": np.float32}
RECORD_FIELDS = ("id", "prompt_id", "policy_version", "epoch", "truncated", "turns", "in_bootstrap")


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One completion of T tokens.

    `prompt_ids` (P,) and `token_ids` (T,): int32. `logps` (T,): log-probs under the policy that wrote it, float32.
    `rewards` (T,): what each token earned, 0 except at the end of an action; float32. `episode_return`: their sum, by
    which siblings are compared. `policy_version`: as in `Sample`; `epoch`: how many times the critic that guides the
    policy had been exchanged. `turns`: tokens of the assistant and of the environment in turns, where it has any.
    `in_bootstrap`: for each member of an ensemble whether it learns from this episode. `extra`: more arrays, each with
    its own number of rows, e.g. hidden states, candidate ids and their reference log-probs.

    The named arrays are converted to these types. Raises ValueError where those of tokens differ in length, for an
    episode without tokens, or for rewards that are not finite.
    """

    id: str
    prompt_id: str
    prompt_ids: np.ndarray
    token_ids: np.ndarray
    logps: np.ndarray
    rewards: np.ndarray
    policy_version: int
    epoch: int = 0
    truncated: bool = False
    turns: tuple[tuple[int, int], ...] = ()
    in_bootstrap: tuple[bool, ...] = ()
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    episode_return: float = field(init=False)

    def __post_init__(self) -> None:
        for name, dtype in {"prompt_ids": np.int32, **TOKEN_ARRAYS}.items():
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=dtype))
        lengths = {name: len(getattr(self, name)) for name in TOKEN_ARRAYS}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"episode {self.id!r}: its arrays differ in length: {lengths}")
        if len(self.token_ids) == 0:
            raise ValueError(f"episode {self.id!r} has no tokens: there is nothing to learn from it")
        if not np.isfinite(self.rewards).all():
            raise ValueError(f"episode {self.id!r} has rewards that are not finite: {self.rewards.tolist()[:8]} ...")
        object.__setattr__(self, "episode_return", float(self.rewards.sum(dtype=np.float64)))

    def arrays(self) -> dict[str, np.ndarray]:
        own = {name: getattr(self, name) for name in ("prompt_ids", *TOKEN_ARRAYS)}
        return own | {f"extra/{name}": array for name, array in self.extra.items()}

    @property
    def nbytes(self) -> int:
        """Memory of its arrays; what Python adds to each object is not counted."""
        return sum(array.nbytes for array in self.arrays().values())


def episodes_to_state(episodes: Sequence[Episode]) -> dict[str, Any]:
    """`records`: JSON types. `tensors`: each array of all episodes, one behind the other.

    Raises ValueError where episodes differ in what `extra` they have: one tensor holds it for all.
    """
    names = list(episodes[0].arrays()) if episodes else []
    for episode in episodes:
        if list(episode.arrays()) != names:
            raise ValueError(
                f"episode {episode.id!r} has the arrays {list(episode.arrays())} and {episodes[0].id!r} has {names}: "
                "episodes of one buffer need the same"
            )
    return {
        "records": [
            {name: getattr(episode, name) for name in RECORD_FIELDS}
            | {"lengths": {name: len(array) for name, array in episode.arrays().items()}}
            for episode in episodes
        ],
        "tensors": {
            name: torch.from_numpy(np.concatenate([episode.arrays()[name] for episode in episodes])) for name in names
        },
    }


def episodes_from_state(state: Mapping[str, Any]) -> list[Episode]:
    """What `episodes_to_state` was given. Raises ValueError where arrays and records do not fit together."""
    records, tensors = state["records"], state["tensors"]
    parts = {
        name: _split(name, tensor, np.array([record["lengths"][name] for record in records], dtype=np.int64))
        for name, tensor in tensors.items()
    }
    episodes = []
    for number, record in enumerate(records):
        own = {name: arrays[number] for name, arrays in parts.items()}
        extra = {name.removeprefix("extra/"): own.pop(name) for name in list(own) if name.startswith("extra/")}
        plain = {name: value for name, value in record.items() if name != "lengths"}
        plain["turns"] = tuple(map(tuple, plain["turns"]))
        plain["in_bootstrap"] = tuple(plain["in_bootstrap"])
        episodes.append(Episode(**plain, **own, extra=extra))
    return episodes


def _split(name: str, tensor: Tensor, count_R: np.ndarray) -> list[np.ndarray]:
    if len(tensor) != count_R.sum():
        raise ValueError(
            f"the buffer's state is damaged: {name} has {len(tensor)} rows, and its {len(count_R)} episodes "
            f"{count_R.sum()}"
        )
    # copies, so that one episode that stays does not hold the memory of all
    return [part.copy() for part in np.split(tensor.cpu().numpy(), count_R.cumsum()[:-1])] if len(count_R) else []

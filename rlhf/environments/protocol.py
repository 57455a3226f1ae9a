"""What an environment is: it answers the model's turns, and pays for them.

A state is a value that is never changed: `answer` returns the next one. So a session is a pure function of its prompt,
its seed and what the model wrote, nothing needs to be saved while it goes on, and a session that was interrupted is
played again from the start.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf.data.types import Prompt

State = Any
"""Whatever the environment wants to know of a session; immutable."""


class EnvironmentFailure(RuntimeError):
    """An environment failed or answered with what cannot be used; the message names the sample and the turn."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the environment does after a turn of the model.

    `text`: the next user message; not shown to the model where `done`. `reward`: what this turn earned. `done`: the
    session is over. `state`: the one to go on from. Raises ValueError for a reward that is no finite number, a text
    that is none, or an empty text of a session that goes on.
    """

    text: str
    reward: float = 0.0
    done: bool = False
    state: State = None

    def __post_init__(self) -> None:
        if isinstance(self.reward, bool) or not isinstance(self.reward, int | float) or not math.isfinite(self.reward):
            raise ValueError(f"reward is {self.reward!r}, and must be a finite number")
        if not isinstance(self.text, str):
            raise ValueError(f"text is of type {type(self.text).__name__}, and must be a string")
        if not self.done and not self.text.strip():
            raise ValueError("text is empty and done is false: say something, or end the session")


class Environment(Protocol):
    """Answers sessions; holds nothing of any of them."""

    def start(self, prompt: Prompt, seed: int) -> State:
        """The state that a session of `prompt` begins in. `seed` is the sample's own: the only source of chance, where
        samples of one prompt are not to meet the same."""

    def answer(self, state: State, text: str) -> Reply:
        """What follows the model's message `text`, decoded and without special tokens."""

"""Sessions of number guessing: games of one session follow each other, and the next secret is near the last one."""

import re
from dataclasses import dataclass

from rlhf.data.number_guessing import next_secret
from rlhf.data.types import Prompt
from rlhf.environments.protocol import Reply

_NUMBER = re.compile(r"[-+]?\d+")
# longer than any secret: such a number is higher, and is not converted
MAX_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Session:
    """`game` numbers were found before; the one to find is `secret`."""

    session: int
    numbers: int
    drift: int
    game: int
    secret: int


class NumberGuessing:
    """The environment of `data.type: number_guessing`. Pays 1 for the turn that finds a number. A session never ends
    by itself. All samples of a prompt meet the same secrets, so their rewards can be compared."""

    def start(self, prompt: Prompt, seed: int) -> Session:
        """Raises KeyError for a prompt of another source."""
        columns = prompt.columns
        session, numbers, drift = (int(columns[name]) for name in ("session", "numbers", "drift"))
        return Session(session, numbers, drift, 0, next_secret(session, 0, None, numbers, drift))

    def answer(self, state: Session, text: str) -> Reply:
        """Judges the first whole number of the text."""
        guess = first_number(text)
        if guess is None:
            return Reply("number?", state=state)
        if guess != state.secret:
            return Reply("higher" if guess < state.secret else "lower", state=state)
        secret = next_secret(state.session, state.game + 1, state.secret, state.numbers, state.drift)
        following = Session(state.session, state.numbers, state.drift, state.game + 1, secret)
        return Reply("right, next", reward=1.0, state=following)


def first_number(text: str) -> int | None:
    """The first integer written in digits, None where there is none."""
    found = _NUMBER.search(text)
    if found is None:
        return None
    digits = found.group()
    if len(digits) > MAX_DIGITS:
        return -(10**MAX_DIGITS) if digits.startswith("-") else 10**MAX_DIGITS
    return int(digits)

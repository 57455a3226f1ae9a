"""What generated tasks share: a problem, and the part of the problems it belongs to: one fifth is held out."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count as count_up
from typing import Any

from rlhf.data.seeds import derive_seed

HELD_OUT_FIFTHS = 1  # of five: about 20 % of all problems are never trained on
PATIENCE = 5_000  # draws in a row without a new held-out problem after which there is none left


@dataclass(frozen=True, slots=True)
class Problem:
    """A question in words, and what its scorer needs (`answer` among it)."""

    question: str
    columns: Mapping[str, Any]


def is_held_out(canonical: str) -> bool:
    """Whether the problem with this canonical form is kept for evaluation.

    The same for every run, whatever its seed: a checkpoint is never measured on what another run trained it on. Forms
    that a person would call the same problem (12 + 7 and 7 + 12) must have one canonical form.
    """
    digest = hashlib.blake2b(canonical.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 5 < HELD_OUT_FIFTHS


class Draws:
    """Random integers that are a pure function of what they are for and how many came before."""

    def __init__(self, *purpose: int | str):
        self._purpose, self._drawn = purpose, 0

    def below(self, limit: int) -> int:
        self._drawn += 1
        return derive_seed(*self._purpose, self._drawn) % limit


Canonical = Callable[[Problem], str]


def training_draw(make: Callable[[int], Problem | None], canonical: Canonical) -> Problem:
    """The first of `make(0)`, `make(1)`, ... that is a problem and not held out."""
    for attempt in count_up():
        made = make(attempt)
        if made is not None and not is_held_out(canonical(made)):
            return made
    raise AssertionError("unreachable: four of five problems are for training")


def held_out_draws(make: Callable[[int], Problem | None], canonical: Canonical, count: int) -> list[Problem]:
    """Up to `count` distinct held-out problems of `make(0)`, `make(1)`, ...; fewer where PATIENCE ran out."""
    found: dict[str, Problem] = {}
    last_new = 0
    for draw in count_up():
        if len(found) == count or draw - last_new > PATIENCE:
            break
        made = make(draw)
        if made is not None and is_held_out(canonical(made)) and canonical(made) not in found:
            found[canonical(made)] = made
            last_new = draw
    return list(found.values())

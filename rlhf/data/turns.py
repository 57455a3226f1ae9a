"""Which tokens of a dialogue are the assistant's: from the lengths of its turns, never from token ids."""

from collections.abc import Sequence

Turn = tuple[int, int]
"""Tokens that the assistant wrote, and tokens that the environment answered with (0 where it did not)."""


def check_turns(turns: Sequence[Turn], length: int, place: str) -> None:
    """Raises ValueError, with the lengths, unless `turns` are of a completion of `length` tokens."""
    for number, (own, environment) in enumerate(turns):
        if own < 1 or environment < 0:
            raise ValueError(
                f"{place}: turn {number} has {own} tokens of the assistant and {environment} of the environment; the "
                "assistant writes at least one"
            )
    total = sum(map(sum, turns))
    if turns and total != length:
        raise ValueError(
            f"{place}: its {len(turns)} turns have {total} tokens together, and it has {length} completion ids"
        )


def own_positions(turns: Sequence[Turn], length: int) -> Sequence[int]:
    """Completion positions of the assistant's tokens, ascending; no turns: all `length` are."""
    if not turns:
        return range(length)
    positions: list[int] = []
    start = 0
    for own, environment in turns:
        positions += range(start, start + own)
        start += own + environment
    return positions


def own_count(turns: Sequence[Turn], length: int) -> int:
    """How many `own_positions` there are."""
    return sum(own for own, _ in turns) if turns else length

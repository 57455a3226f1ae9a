"""Generated sessions of number guessing: what the first message says, and which secret numbers a session has."""

from rlhf.data.generated import Draws, Problem, held_out_draws, is_held_out, training_draw
from rlhf.data.seeds import derive_seed

SESSIONS = 2**31


def training_session(numbers: int, drift: int, seed: int, index: int) -> Problem:
    """The `index`-th session that a run with `seed` trains on."""

    def make(attempt: int) -> Problem:
        drawn = Draws(seed, "number_guessing", "train", index, attempt).below(SESSIONS)
        return _problem(numbers, drift, drawn)

    return training_draw(make, _canonical)


def held_out_sessions(numbers: int, drift: int, count: int, seed: int = 0) -> list[Problem]:
    """`count` distinct sessions that no run trains on."""

    def make(attempt: int) -> Problem:
        return _problem(numbers, drift, Draws(seed, "number_guessing", "held_out", attempt).below(SESSIONS))

    return held_out_draws(make, _canonical, count)


def next_secret(session: int, game: int, last: int | None, numbers: int, drift: int) -> int:
    """The secret of a session's game 0, 1, ...: uniform in 1..numbers, and then uniform within `drift` of the last."""
    low, high = (1, numbers) if last is None else (max(1, last - drift), min(numbers, last + drift))
    return low + derive_seed("number_guessing", session, game) % (high - low + 1)


def is_held_out_session(session: int) -> bool:
    """Whether no run trains on it."""
    return is_held_out(f"number_guessing {session}")


def _canonical(problem: Problem) -> str:
    return f"number_guessing {problem.columns['session']}"


def _problem(numbers: int, drift: int, session: int) -> Problem:
    question = (
        f"Guess my number from 1 to {numbers}. Answer with only the number, for example {(numbers + 1) // 2 + 1}. "
        f"I say higher, lower or right. {_after(drift)}"
    )
    return Problem(question, {"session": session, "numbers": numbers, "drift": drift})


def _after(drift: int) -> str:
    if drift == 0:
        return "Then guess it again: it stays the same."
    return f"Then comes a new number, at most {drift} away from the last."

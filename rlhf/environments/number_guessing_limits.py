"""What the best play of number guessing earns, exactly: the ceiling that a trained policy is measured against.

What a player knows of the secret is an interval, in which every number is as likely as any other: at first all numbers,
then what higher and lower leave of it, and after a find the numbers within `drift`. So the best expected reward solves
a small dynamic programme over (interval, turns left). Guessing at random, without memory, earns 1 / numbers a turn.
"""

from fractions import Fraction
from functools import cache, lru_cache

Interval = tuple[int, int]


def best_reward_per_turn(numbers: int, drift: int, turns: int) -> Fraction:
    """Expected reward of a turn under the best play of a session of `turns` turns. Time numbers^3 turns: for small
    games."""
    return _solver(numbers, drift)((1, numbers), turns)[0] / turns


def best_guess(interval: Interval, turns: int, numbers: int, drift: int) -> int:
    """A best guess (the smallest) where the secret is uniform on the interval and so many turns are left."""
    return _solver(numbers, drift)(interval, turns)[1]


def after_a_find(secret: int, numbers: int, drift: int) -> Interval:
    """Where the next secret is."""
    return max(1, secret - drift), min(numbers, secret + drift)


@lru_cache(maxsize=16)
def _solver(numbers: int, drift: int):
    @cache
    def solve(interval: Interval, turns: int) -> tuple[Fraction, int]:
        """(expected reward, guess)."""
        low, high = interval
        if turns == 0:
            return Fraction(0), low
        best = Fraction(-1), low
        for guess in range(low, high + 1):
            found = 1 + solve(after_a_find(guess, numbers, drift), turns - 1)[0]
            total = found
            if guess > low:
                total += (guess - low) * solve((low, guess - 1), turns - 1)[0]
            if guess < high:
                total += (high - guess) * solve((guess + 1, high), turns - 1)[0]
            best = max(best, (total / (high - low + 1), guess), key=lambda pair: pair[0])
        return best

    return solve

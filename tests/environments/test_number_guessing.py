"""Number guessing: what is answered, what is paid, and what the best play earns, by brute force and in closed form."""

from fractions import Fraction
from itertools import product

import pytest

from rlhf.data.number_guessing import held_out_sessions, is_held_out_session, next_secret, training_session
from rlhf.data.seeds import derive_seed
from rlhf.data.types import Prompt
from rlhf.environments.number_guessing import NumberGuessing, first_number
from rlhf.environments.number_guessing_limits import after_a_find, best_guess, best_reward_per_turn
from rlhf.environments.protocol import Reply


def prompt(session, numbers=8, drift=1):
    return Prompt("n:0", (1,), "?", {"session": session, "numbers": numbers, "drift": drift})


def test_answers_and_rewards():
    game = NumberGuessing()
    state = game.start(prompt(5), seed=0)
    low, high = game.answer(state, str(state.secret - 1)), game.answer(state, f"I say {state.secret + 1}.")
    assert (low.text, low.reward, low.state) == ("higher", 0, state)
    assert (high.text, high.reward, high.state) == ("lower", 0, state)
    assert game.answer(state, "no idea") == Reply("number?", state=state)
    found = game.answer(state, f"{state.secret}, I think, or 99")
    assert (found.text, found.reward, found.done) == ("right, next", 1, False)
    assert found.state.game == 1 and abs(found.state.secret - state.secret) <= 1
    # pure: the same state and text give the same reply, whatever came between
    assert game.answer(state, f"{state.secret}") == found and game.start(prompt(5), seed=9) == state


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("-3 or 4", -3), ("+2", 2), ("No.", None), ("", None), ("x1e9", 1), ("0008", 8), ("9" * 5000, 10**9),
     ("__import__('os')", None), ("-" + "9" * 99, -(10**9))],
)  # fmt: skip
def test_first_number(text, number):
    assert first_number(text) == number


def test_secrets_drift():
    for session, drift in product(range(40), (0, 1, 3)):
        last = None
        for game in range(30):
            secret = next_secret(session, game, last, 8, drift)
            assert 1 <= secret <= 8 and (last is None or abs(secret - last) <= drift)
            last = secret
    moves = [next_secret(session, 1, 4, 8, 1) - 4 for session in range(3000)]
    assert all(abs(moves.count(move) - 1000) < 100 for move in (-1, 0, 1))


def test_parts():
    """Nothing is trained on that is held out; sessions are a function of seed and index."""
    trained = [training_session(8, 1, seed, index).columns["session"] for seed in (0, 1) for index in range(200)]
    held_out = [problem.columns["session"] for problem in held_out_sessions(8, 1, 200)]
    assert len(set(trained)) == 400 and len(set(held_out)) == 200
    assert not any(map(is_held_out_session, trained)) and all(map(is_held_out_session, held_out))
    assert training_session(8, 1, 1, 7) == training_session(8, 1, 1, 7)


def brute_force(numbers, drift, turns):
    """The best expected reward of a session, over all plays: a play is what to guess after each history of answers, and
    every secret and every drift is met with its probability."""

    def best(worlds, turns_left):
        # worlds: probability by the secret that is now to be found
        if not turns_left:
            return Fraction(0)
        totals = []
        for guess in range(1, numbers + 1):
            total = Fraction(0)
            for answer in ("<", "=", ">"):
                left = {s: p for s, p in worlds.items() if ("<" if guess < s else ">" if guess > s else "=") == answer}
                if not left:
                    continue
                weight = sum(left.values())
                if answer == "=":
                    near = range(max(1, guess - drift), min(numbers, guess + drift) + 1)
                    left = {s: weight * Fraction(1, len(near)) for s in near}
                    total += weight
                total += best(left, turns_left - 1)
            totals.append(total)
        return max(totals)

    return best({secret: Fraction(1, numbers) for secret in range(1, numbers + 1)}, turns)


SMALL = [(2, 1, 4), (3, 0, 4), (3, 1, 4), (4, 1, 3), (4, 2, 3), (5, 1, 2)]


@pytest.mark.parametrize(("numbers", "drift", "turns"), SMALL)
def test_best_play_is_that_of_brute_force(numbers, drift, turns):
    assert best_reward_per_turn(numbers, drift, turns) * turns == brute_force(numbers, drift, turns)


def test_best_play_in_closed_form():
    # the number stays: of three, the middle one first; then it is known
    assert best_reward_per_turn(3, 0, 10) * 10 == 10 - Fraction(2, 3)
    assert best_reward_per_turn(2, 0, 7) * 7 == 7 - Fraction(1, 2)
    # one turn: a guess
    assert best_reward_per_turn(8, 1, 1) == Fraction(1, 8)
    # what is remembered pays: near the last number there is less to search
    assert best_reward_per_turn(8, 1, 10) > best_reward_per_turn(8, 7, 10) > Fraction(1, 8)


def play(numbers, drift, turns, session, guess):
    game, earned = NumberGuessing(), 0.0
    state = game.start(prompt(session, numbers, drift), seed=0)
    interval = (1, numbers)
    for turn in range(turns):
        number = guess(interval, turns - turn, session, turn)
        reply = game.answer(state, str(number))
        earned, state = earned + reply.reward, reply.state
        if reply.reward:
            interval = after_a_find(number, numbers, drift)
        elif reply.text == "higher":
            interval = (number + 1, interval[1])
        else:
            interval = (interval[0], number - 1)
    return earned


def test_the_environment_pays_what_theory_says():
    """The best play, and guesses at random, over 4,000 sessions: within four standard errors, with a deviation of a
    session's mean of at most 0.2."""
    sessions, numbers, drift, turns = 4000, 8, 1, 8

    def best(interval, left, session, turn):
        return best_guess(interval, left, numbers, drift)

    def blind(interval, left, session, turn):
        return 1 + derive_seed("blind", session, turn) % numbers

    best_mean = sum(play(numbers, drift, turns, s, best) for s in range(sessions)) / (sessions * turns)
    blind_mean = sum(play(numbers, drift, turns, s, blind) for s in range(sessions)) / (sessions * turns)
    assert abs(best_mean - float(best_reward_per_turn(numbers, drift, turns))) < 4 * 0.2 / sessions**0.5
    assert abs(blind_mean - 1 / numbers) < 4 * 0.2 / sessions**0.5

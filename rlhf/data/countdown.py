r"""Generated countdown: reach a target with + - * / and the given numbers, each at most once.

A problem is made backwards: numbers are combined by random operations until one value is left, which is the target.
It can therefore always be solved, with positive integers all the way and divisions that leave no rest.
"""

from rlhf.data.errors import DataError
from rlhf.data.generated import Draws, Problem, held_out_draws, training_draw

TARGET_FACTOR = 10  # targets and intermediate results are at most this many times the largest number: mental arithmetic

QUESTION = (
    "Use the numbers {numbers} to make {target}. You may add (+), subtract (-), multiply (*) and divide (/), use "
    "parentheses, and use each number at most once. Put one expression that equals {target} in \\boxed{{}}, "
    "without an equals sign."
)


def training_problem(numbers: int, largest: int, seed: int, index: int) -> Problem:
    """The `index`-th training problem of a run with `seed`; drawn with replacement from the training part.

    `numbers`: how many are given; `largest`: the largest of them. Columns: numbers, target, answer (one solution).
    """
    purpose = (seed, "countdown", numbers, largest, "train", index)
    return training_draw(lambda attempt: _make(numbers, largest, Draws(*purpose, attempt)), _canonical)


def held_out_problems(numbers: int, largest: int, count: int, seed: int = 0) -> list[Problem]:
    """`count` distinct problems that no run trains on. Raises DataError where there are fewer."""
    purpose = (seed, "countdown", numbers, largest, "held_out")
    found = held_out_draws(lambda draw: _make(numbers, largest, Draws(*purpose, draw)), _canonical, count)
    if len(found) < count:
        raise DataError(
            f"countdown with {numbers} numbers up to {largest} has {len(found)} held-out problems, and {count} are "
            f"wanted: set evaluation.prompts to {len(found)} or less, or raise data.numbers or data.largest"
        )
    return found


def _canonical(problem: Problem) -> str:
    return f"{sorted(problem.columns['numbers'])} -> {problem.columns['target']}"


def _make(numbers: int, largest: int, draws: Draws) -> Problem | None:
    """One problem, or None where the draw gave a target that is among the numbers (nothing to do)."""
    given = [1 + draws.below(largest) for _ in range(numbers)]
    values = [(number, str(number)) for number in given]
    while len(values) > 1:
        a, left = values.pop(draws.below(len(values)))
        b, right = values.pop(draws.below(len(values)))
        steps = _operations(a, b, TARGET_FACTOR * largest)
        if not steps:
            return None
        operator, value = steps[draws.below(len(steps))]
        values.append((value, f"{_grouped(left)} {operator} {_grouped(right)}"))
    target, solution = values[0]
    if target in given:
        return None
    question = QUESTION.format(numbers=", ".join(map(str, given)), target=target)
    return Problem(question, {"numbers": given, "target": target, "answer": solution})


def _operations(a: int, b: int, limit: int) -> list[tuple[str, int]]:
    """The operations on (a, b) whose result is an integer from 1 to `limit`."""
    results = [("+", a + b), ("-", a - b), ("*", a * b)] + ([("/", a // b)] if a % b == 0 else [])
    return [(operator, value) for operator, value in results if 1 <= value <= limit]


def _grouped(expression: str) -> str:
    return f"({expression})" if " " in expression else expression

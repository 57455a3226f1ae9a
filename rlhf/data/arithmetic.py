"""Generated sums. `What is 12 + 7? Answer with only the number.`

| level | problems                                                                    | in all | held out |
|-------|-----------------------------------------------------------------------------|--------|----------|
| 1     | a + b, one digit each                                                       |    100 |       25 |
| 2     | a + b, both below 50                                                        |  2,500 |      508 |
| 3     | a + b, a - b, both below 100                                                | 20,000 |    4,136 |
| 4     | a + b, a - b, a * b, two digits each                                        | 24,300 |    4,932 |
| 5     | a product, and a number added or taken away (a + b * c, ...), all 2 to 30   | 97,556 |   19,635 |

Results may be negative. A problem and its mirror images (7 + 12, 12 + 7) are on the same side of the split, and so is
the same problem on two levels.
"""

from functools import lru_cache

from rlhf.data.errors import DataError
from rlhf.data.generated import Problem, is_held_out
from rlhf.data.order import PromptOrder
from rlhf.data.seeds import derive_seed

Terms = tuple[int | str, ...]  # e.g. (12, "+", 7) or (3, "-", 4, "*", 5)


def training_problem(level: int, seed: int, index: int) -> Problem:
    """The `index`-th training problem of a run with `seed`.

    Every training problem of the level comes once, shuffled; indices beyond their number draw with replacement.
    """
    problems = _parts(level)[0]
    if index < len(problems):
        chosen = _order(len(problems), derive_seed(seed, "arithmetic", level, "train"))(index)
    else:
        chosen = derive_seed(seed, "arithmetic", level, "train", index) % len(problems)
    return _problem(problems[chosen])


def held_out_problems(level: int, count: int, seed: int = 0) -> list[Problem]:
    """`count` distinct problems that no run trains on. Raises DataError where the level has fewer."""
    problems = _parts(level)[1]
    if count > len(problems):
        raise DataError(
            f"arithmetic level {level} has {len(problems)} held-out problems, and {count} are wanted: set "
            f"evaluation.prompts to {len(problems)} or less, or choose a higher level"
        )
    order = _order(len(problems), derive_seed(seed, "arithmetic", level, "held_out"))
    return [_problem(problems[order(index)]) for index in range(count)]


@lru_cache(maxsize=8)
def _order(length: int, seed: int) -> PromptOrder:
    return PromptOrder(length, seed)


@lru_cache(maxsize=5)
def _parts(level: int) -> tuple[list[Terms], list[Terms]]:
    """All problems of a level, to train on and held out."""
    parts: tuple[list[Terms], list[Terms]] = ([], [])
    for terms in _all_problems(level):
        parts[is_held_out(_canonical(terms))].append(terms)
    return parts


def _all_problems(level: int) -> list[Terms]:
    if level == 5:
        numbers = range(2, 31)
        return [
            (a, first, b, second, c)
            for a in numbers
            for b in numbers
            for c in numbers
            for first, second in (("*", "+"), ("*", "-"), ("+", "*"), ("-", "*"))
        ]
    numbers, operators = {
        1: (range(10), "+"),
        2: (range(50), "+"),
        3: (range(100), "+-"),
        4: (range(10, 100), "+-*"),
    }[level]
    return [(a, operator, b) for a in numbers for b in numbers for operator in operators]


def _apply(a: int, operator: str, b: int) -> int:
    return a + b if operator == "+" else a - b if operator == "-" else a * b


def _result(terms: Terms) -> int:
    """The value of the expression; a product binds closer than what stands before it."""
    a, first, b, *rest = terms
    if not rest:
        return _apply(a, first, b)
    second, c = rest
    return _apply(a, first, _apply(b, second, c)) if second == "*" else _apply(_apply(a, first, b), second, c)


def _canonical(terms: Terms) -> str:
    """One text for a problem and its mirror images: factors and summands in one order."""
    operator = " - " if "-" in terms else " + "
    products = " ".join(map(str, terms)).split(operator)
    products = [" * ".join(sorted(product.split(" * "))) for product in products]
    return operator.join(products if operator == " - " else sorted(products))


def _problem(terms: Terms) -> Problem:
    expression = " ".join(map(str, terms))
    return Problem(f"What is {expression}? Answer with only the number.", {"answer": str(_result(terms))})

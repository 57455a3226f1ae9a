"""Preference pairs of generated sums: the right answer against a wrong one that only computing tells apart.

Wrong answers are slips that people and small models make. Both answers are worded as models word them, in half of the
pairs alike, in the others each by a draw of its own: wording says nothing about which is right, and no wording scores
above another.
"""

import re
from collections.abc import Mapping

from rlhf.data.generated import Draws, Problem

# as often as they are listed; the first is what the question asks for
WORDINGS = (
    *["{answer}"] * 6, "{answer}.", *["The answer is {answer}."] * 2, *["{expression} = {answer}"] * 2,
    "The result of {expression} is {answer}.",
)  # fmt: skip
WORDINGS_BY_NAME = {"varied": WORDINGS, "number": ("{answer}",)}
EXPRESSION = re.compile(r"What is (-?\d+(?: [-+*] \d+)+)\?")


def pair_fields(problem: Problem, draws: Draws, wordings: str = "varied") -> Mapping[str, str]:
    """`prompt`, `chosen` and `rejected` of an arithmetic problem, in TRL's standard format.

    `wordings`: "varied", or "number" for answers that are the number alone. Raises ValueError where the question is not
    that of a generated sum.
    """
    found = EXPRESSION.match(problem.question)
    if found is None:
        raise ValueError(f"{problem.question!r} is no generated sum: pairs are made of data.type arithmetic only")
    expression, gold = found[1], int(problem.columns["answer"])
    slips = wrong_answers(expression, gold)
    names = sorted(slips)
    wrong = slips[names[draws.below(len(names))]]
    worded = WORDINGS_BY_NAME[wordings]
    one, other = (worded[draws.below(len(worded))] for _ in range(2))
    if draws.below(2):
        other = one
    return {
        "prompt": problem.question,
        "chosen": one.format(answer=gold, expression=expression),
        "rejected": other.format(answer=wrong, expression=expression),
    }


def wrong_answers(expression: str, gold: int) -> dict[str, int]:
    """Wrong results by the slip that leads to them; none is `gold`, and none negative where `gold` is not."""
    slips = {
        "one_more": gold + 1, "one_less": gold - 1, "two_more": gold + 2, "two_less": gold - 2,
        "ten_more": gold + 10, "ten_less": gold - 10,
        "digits_swapped": (-1 if gold < 0 else 1) * int(str(abs(gold))[::-1]),
    }  # fmt: skip
    terms = expression.split()
    if len(terms) == 3:
        a, operator, b = int(terms[0]), terms[1], int(terms[2])
        if operator == "+":
            slips |= {"carry_lost": _without_carry(a, b), "subtracted": a - b}
        elif operator == "-":
            slips |= {"added": a + b, "sign_lost": b - a}
        else:
            slips |= {"added": a + b, "a_row_less": gold - a, "a_row_more": gold + a}
    return {name: wrong for name, wrong in slips.items() if wrong != gold and (wrong >= 0 or gold < 0)}


def _without_carry(a: int, b: int) -> int:
    """Digits added column by column, carries forgotten: 27 + 15 is 32."""
    total, place = 0, 1
    while a or b:
        total += (a % 10 + b % 10) % 10 * place
        a, b, place = a // 10, b // 10, place * 10
    return total

"""Generated word problems at the level of a primary school: a story of 2 to 8 steps, each one operation on integers.

Every step's result is a positive integer. A problem may carry a sentence with a number that does not matter. Two
problems with the same computation are the same problem, whatever the story: a checkpoint that trained on one is not
measured on the other.
"""

from collections.abc import Sequence
from string import Formatter
from typing import TypeVar

from rlhf.data.errors import DataError
from rlhf.data.generated import Draws, Problem, held_out_draws, training_draw
from rlhf.data.word_problem_stories import NAMES, STORIES, Story

T = TypeVar("T")
MIN_STEPS, MAX_STEPS = 2, 8
ASIDE_THIRDS = 1  # of three: a third of the problems carry an irrelevant number

Step = tuple[int, str, int, int]  # left, operator, right, result

STEPS_OF_KIND = {
    "given": 0, "ask": 0, "groups": 1, "add": 1, "take": 1, "times": 1, "half": 1, "share": 1, "price": 1, "from": 1,
    "plus_first": 1, "minus_first": 1, "add_groups": 2, "take_groups": 2, "swap": 2, "share_price": 2,
}  # fmt: skip


def training_problem(seed: int, index: int, steps: int | None = None) -> Problem:
    """The `index`-th training problem of a run with `seed`; drawn with replacement from the training part.

    `steps`: how many operations, 2 to 8; None draws it. Columns: answer (text), steps, solution (one line
    `left operator right = result` for each step). Raises ValueError for another number of steps.
    """
    _check(steps)
    purpose = (seed, "word_problems", steps or 0, "train", index)
    return training_draw(lambda attempt: _make(steps, _StoryDraws(*purpose, attempt)), _canonical)


def held_out_problems(count: int, seed: int = 0, steps: int | None = None) -> list[Problem]:
    """`count` distinct problems that no run trains on; the first of a larger count are the same.

    Raises DataError where there are fewer, ValueError for `steps` outside 2 to 8.
    """
    _check(steps)
    purpose = (seed, "word_problems", steps or 0, "held_out")
    found = held_out_draws(lambda draw: _make(steps, _StoryDraws(*purpose, draw)), _canonical, count)
    if len(found) < count:
        raise DataError(f"{len(found)} held-out word problems of {steps} steps were found, and {count} are wanted")
    return found


def _check(steps: int | None) -> None:
    if steps is not None and not MIN_STEPS <= steps <= MAX_STEPS:
        raise ValueError(f"steps = {steps}: word problems have {MIN_STEPS} to {MAX_STEPS} steps")


class _StoryDraws(Draws):
    """Choices of a story: its numbers, words and sentences."""

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def one_of(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def take(self, left: list[str]) -> str:
        """One of `left`, which loses it."""
        return left.pop(self.below(len(left)))


def _canonical(problem: Problem) -> str:
    """The computation alone, with the operands of + and * in one order."""
    lines = []
    for line in problem.columns["solution"].splitlines():
        left, operator, right, _, _ = line.split()
        pair = sorted((left, right), key=int) if operator in "+*" else (left, right)
        lines.append(f"{pair[0]}{operator}{pair[1]}")
    return " ".join(lines)


def _make(steps: int | None, draws: _StoryDraws) -> Problem | None:
    """One problem; None where the draw led to a dead end (nothing can happen, or the closing does not fit)."""
    story = draws.one_of(STORIES)
    wanted = draws.between(MIN_STEPS, MAX_STEPS) if steps is None else steps
    telling = _Telling(story, draws)
    telling.tell(story.openings)
    if draws.below(3) < ASIDE_THIRDS:
        telling.say(draws.one_of(story.asides), {"d": draws.between(3, 12)})
    closing = draws.one_of([c for c in story.closings if STEPS_OF_KIND[c[0]] < wanted - len(telling.steps)])
    unused = list(story.events)
    while (room := wanted - len(telling.steps) - STEPS_OF_KIND[closing[0]]) > 0:
        told = telling.tell([event for event in unused if STEPS_OF_KIND[event[0]] <= room])
        if told is None:
            return None
        if not telling.may_repeat(told[1]):
            unused.remove(told)
    if telling.tell([closing]) is None:
        return None
    solution = "\n".join(f"{left} {operator} {right} = {result}" for left, operator, right, result in telling.steps)
    columns = {"answer": str(telling.value), "steps": len(telling.steps), "solution": solution}
    return Problem(" ".join(telling.sentences), columns)


class _Telling:
    """A story as far as it is told: its sentences, its steps, and the running value."""

    def __init__(self, story: Story, draws: _StoryDraws):
        self._story, self._draws = story, draws
        self._names = list(NAMES)
        self._words = {word: draws.one_of(choices) for word, choices in story.words.items()}
        self._words |= {role: draws.take(self._names) for role in ("name", "friend")}
        self._words["first"] = self._words["name"]
        self._places = {word: list(choices) for word, choices in story.places.items()}
        self.sentences: list[str] = []
        self.steps: list[Step] = []
        self.value = self.first = 0

    def may_repeat(self, text: str) -> bool:
        """A sentence can come again if something in it differs each time."""
        fields = _fields(text)
        return "next" in fields or bool(fields & set(self._places))

    def tell(self, choices: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        """Tell one of the sentences that are possible now, and take its steps; None if none is possible."""
        left = [sentence for sentence in choices if all(self._places.get(f, [1]) for f in _fields(sentence[1]))]
        while left:
            sentence = left.pop(self._draws.below(len(left)))
            made = self._numbers(sentence[0])
            if made is None:
                continue
            numbers, steps = made
            for step in steps:
                self.steps.append(step)
                self.value = step[3]
            if not self.sentences:
                self.value = self.first = self.value or numbers["b"]
            self.say(sentence[1], numbers)
            return sentence
        return None

    def say(self, text: str, numbers: dict[str, int]) -> None:
        fields = _fields(text)
        words = {word: self._draws.take(left) for word, left in self._places.items() if word in fields}
        if "next" in fields:
            words["next"] = self._draws.take(self._names)
        times = {"times": "twice" if numbers.get("k") == 2 else f"{numbers.get('k')} times"}
        self.sentences.append(text.format(**self._words, **words, **numbers, **times))
        self._words["name"] = words.get("next", self._words["name"])

    def _numbers(self, kind: str) -> tuple[dict[str, int], list[Step]] | None:
        """Numbers for a sentence of `kind`, and its steps; None if the value does not allow it."""
        draws, value = self._draws, self.value
        b, c, p, q = draws.between(2, 40), draws.between(2, 40), draws.between(2, 9), draws.between(2, 12)
        groups = (p, "*", q, p * q)
        divisors = [k for k in range(3, 10) if value % k == 0 and value > k]
        k = draws.between(2, 4)
        match kind:
            case "given":
                return {"b": draws.between(12, min(99, self._story.cap // 2))}, []
            case "ask":
                return {}, []
            case "groups":
                return self._if_fits({"p": p, "q": q}, [groups])
            case "add":
                return self._if_fits({"b": b}, [(value, "+", b, value + b)])
            case "take":
                return self._if_fits({"b": b}, [(value, "-", b, value - b)])
            case "swap":
                return self._if_fits({"b": b, "c": c}, [(value, "-", b, value - b), (value - b, "+", c, value - b + c)])
            case "times":
                return self._if_fits({"k": k}, [(value, "*", k, value * k)])
            case "half":
                return self._if_fits({}, [(value, "/", 2, value // 2)]) if value % 2 == 0 else None
            case "share" | "share_price" if divisors:
                k = draws.one_of(divisors)
                share = (value, "/", k, value // k)
                if kind == "share":
                    return {"k": k}, [share]
                return {"k": k, "c": q}, [share, (value // k, "*", q, value // k * q)]
            case "price":
                return {"k": q}, [(value, "*", q, value * q)]
            case "add_groups":
                return self._if_fits({"p": p, "q": q}, [groups, (value, "+", p * q, value + p * q)])
            case "take_groups":
                return self._if_fits({"p": p, "q": q}, [groups, (value, "-", p * q, value - p * q)])
            case "from":
                return {"b": value + b}, [(value + b, "-", value, b)]
            case "plus_first" if self._words["name"] != self._words["first"]:
                return {}, [(self.first, "+", value, self.first + value)]
            case "minus_first" if value > self.first:
                return {}, [(value, "-", self.first, value - self.first)]
        return None

    def _if_fits(self, numbers: dict[str, int], steps: list[Step]) -> tuple[dict[str, int], list[Step]] | None:
        """None if a result is not believable: below 2, since texts speak of several, or above the story's cap."""
        return (numbers, steps) if all(2 <= step[3] <= self._story.cap for step in steps) else None


def _fields(text: str) -> set[str]:
    return {field for _, field, _, _ in Formatter().parse(text) if field is not None}

r"""Worked examples in front of a question, as EleutherAI's lm-evaluation-harness 0.4.13 puts them for its task gsm8k.

The prompt is `Question: q\nAnswer: a` k times and `Question: q\nAnswer:` once, joined by empty lines; a is the whole
worked solution with its `<<16-3-4=9>>` marks. Which examples stand there is decided by one generator, seeded with 1234,
that draws for one question after another: question i gets the i-th draw, so its examples depend on its place in the
test set and not on the question. Two consequences: a run of the harness over several processes draws otherwise than
one over one, and so does one that picks out questions (`--samples`). What is reproduced here is one process, in order.

The harness knows a second case, examples drawn from the evaluated set itself. There it draws k + 1, leaves the question
out where it is among them, and keeps the first k; if the set holds a question twice and fewer than k are left, it draws
k once more from the set without that question. Here that case is recognised by the question's id and text, and the
draw is that of its place in the pool. The harness compares whole rows; here the same text is the same question, so that
no question ever stands below its own answer.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from eval.questions import Question
from rlhf.data.errors import DataError

SEED = 1234
"""The harness's default for `--seed`, fourth number (few-shot sampling)."""
STOP_STRINGS = ("Question:", "</s>", "<|im_end|>")
"""Where a completion is cut, beside the tokenizer's end of sequence."""


class Shots:
    """The examples of each question: a function of pool, count, seed and the question's place, whatever was asked
    before.

    `pool` are questions with a worked solution in `columns["solution"]`. Raises DataError where it is too small or a
    solution is missing.
    """

    def __init__(self, pool: Sequence[Question], count: int, seed: int = SEED) -> None:
        if count < 0:
            raise DataError(f"shots = {count}: a number of worked examples is 0 or more")
        if len(pool) < count:
            raise DataError(
                f"shots = {count}, but there are {len(pool)} questions to draw worked examples from: set shots to "
                f"{len(pool)} or less, or evaluate a benchmark that has a training set"
            )
        if count:
            for question in pool:
                solution(question)
        self.pool, self.count, self.seed = tuple(pool), count, seed
        self._place = {question.id: place for place, question in enumerate(pool)}
        self._fewest_others = len(pool) - max(Counter(question.text for question in pool).values(), default=0)
        self._draws = _Remembered(_draws(self.pool, count, seed))
        self._own_draws = _Remembered(_draws_from_own_set(self.pool, count, seed))

    def before(self, question: Question, index: int) -> tuple[Question, ...]:
        """The examples in front of `question`, the index-th (from 0) of its benchmark."""
        if self.count == 0:
            return ()
        place = self._place.get(question.id)
        if place is None or self.pool[place].text != question.text:
            return self._draws[index]
        if self.count > self._fewest_others:
            raise DataError(
                f"shots = {self.count}, but the worked examples come from the evaluated questions themselves, and one "
                f"of them has only {self._fewest_others} others: set shots to {self._fewest_others} or less"
            )
        return self._own_draws[place]


def solution(question: Question) -> str:
    """The worked solution of an example. Raises DataError where the question has none."""
    text = question.columns.get("solution")
    if not isinstance(text, str) or not text:
        raise DataError(
            f"question {question.id!r} cannot be a worked example: it has no solution (a text in its columns, by the "
            "name `solution`); set shots to 0, or use a benchmark whose training set has solutions"
        )
    return text


def few_shot_text(question: Question, shots: Sequence[Question]) -> str:
    """The plain prompt: examples and question in one text, to be continued."""
    examples = [f"{_ask(shot)} {solution(shot)}" for shot in shots]
    return "\n\n".join([*examples, _ask(question)])


def few_shot_messages(question: Question, shots: Sequence[Question]) -> list[dict[str, Any]]:
    """The conversation that `--apply_chat_template` makes: each example a turn of the user and one of the assistant."""
    messages = []
    for shot in shots:
        messages += [
            {"role": "user", "content": _ask(shot)},
            {"role": "assistant", "content": solution(shot)},
        ]
    return [*messages, {"role": "user", "content": _ask(question)}]


def _ask(question: Question) -> str:
    return f"Question: {question.text}\nAnswer:"


def _draws(pool: Sequence[Question], count: int, seed: int) -> Iterator[tuple[Question, ...]]:
    generator = random.Random(seed)
    while True:
        yield tuple(generator.sample(pool, count))


def _draws_from_own_set(pool: Sequence[Question], count: int, seed: int) -> Iterator[tuple[Question, ...]]:
    generator = random.Random(seed)
    for question in pool:
        others = [other for other in pool if other.text != question.text]
        drawn = generator.sample(pool, count + 1)
        kept = [shot for shot in drawn if shot.text != question.text][:count]
        yield tuple(kept if len(kept) == count else generator.sample(others, count))


class _Remembered:
    """An iterator's items by place; each is made once, after those before it."""

    def __init__(self, items: Iterator[tuple[Question, ...]]) -> None:
        self._items, self._made = items, []

    def __getitem__(self, place: int) -> tuple[Question, ...]:
        self._made += islice(self._items, max(0, place + 1 - len(self._made)))
        return self._made[place]

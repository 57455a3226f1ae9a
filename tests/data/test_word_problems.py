"""Word problems: an independent reading of the solution, the numbers in the text, the split, the language."""

import ast
import operator
import re
from collections import Counter
from fractions import Fraction
from string import Formatter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data import generated, word_problems
from rlhf.data.errors import DataError
from rlhf.data.generated import is_held_out
from rlhf.data.word_problem_stories import NAMES, STORIES
from rlhf.rewards import grade

PINNED = (
    "There are 37 atlases in a library. The librarian has 12 assistants. The town sends 4 boxes with 10 atlases in "
    "each of them. They are put on 7 shelves, the same number on each. How many atlases are on each shelf?",
    "11",
)
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculate(line: str) -> tuple[Fraction, list[int], Fraction]:
    """(value of the left side, its numbers, stated result) of a line such as `12 * 4 = 48`, through Python's AST."""
    left, right = line.split(" = ")
    tree = ast.parse(left, mode="eval").body
    assert isinstance(tree, ast.BinOp)
    numbers = []
    for node in (tree.left, tree.right):
        assert isinstance(node, ast.Constant) and type(node.value) is int
        numbers.append(node.value)
    return OPERATIONS[type(tree.op)](*map(Fraction, numbers)), numbers, Fraction(right)


def numbers_in(question: str) -> Counter[int]:
    found = Counter(int(digits) for digits in re.findall(r"\d+", question))
    found[2] += len(re.findall(r"\b(?:twice|half)\b", question, re.IGNORECASE))
    if re.search(r"How many (?:\w+ do \w+ and \w+ have together|more \w+ does \w+ have than \w+)\?$", question):
        # such a question takes the first person's number a second time
        found[int(re.search(r"\d+", question)[0])] += 1
    return found


def check(problem) -> None:
    """Every step is right, its result a positive integer that a later step uses; all other numbers are in the text."""
    lines = problem.columns["solution"].splitlines()
    results: list[int] = []
    unused: Counter[int] = Counter()
    from_text: Counter[int] = Counter()
    for line in lines:
        value, operands, stated = calculate(line)
        assert value == stated and value.denominator == 1 and value >= 1, line
        for number in operands:
            if unused[number]:
                unused[number] -= 1
            else:
                from_text[number] += 1
        results.append(int(value))
        unused[int(value)] += 1
    assert str(results[-1]) == problem.columns["answer"]
    # a step's result is used once, but for the last one: no step is for nothing
    assert +unused == Counter([results[-1]]), problem
    assert not from_text - numbers_in(problem.question), problem
    assert problem.columns["steps"] == len(lines)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**9), index=st.integers(0, 10**6), steps=st.none() | st.integers(2, 8))
def test_the_solution_follows_from_the_text(seed, index, steps):
    problem = word_problems.training_problem(seed, index, steps)
    check(problem)
    assert 2 <= problem.columns["steps"] <= 8 and steps in (None, problem.columns["steps"])
    assert set(problem.columns) == {"answer", "steps", "solution"}
    # irrelevant numbers: at most the one of an aside
    needed = Counter(n for line in problem.columns["solution"].splitlines() for n in calculate(line)[1])
    assert (numbers_in(problem.question) - needed).total() <= 1


@pytest.mark.parametrize("steps", range(2, 9))
def test_held_out_problems_have_the_wanted_steps_and_no_twin(steps):
    problems = word_problems.held_out_problems(150, steps=steps)
    assert {problem.columns["steps"] for problem in problems} == {steps}
    assert len({problem.question for problem in problems}) == 150
    assert len({problem.columns["solution"] for problem in problems}) == 150
    for problem in problems:
        check(problem)
        assert grade(f"So it is \\boxed{{{problem.columns['answer']}}}.", problem.columns["answer"]).outcome == "right"


def test_parts_share_no_computation():
    def computation(problem):
        # the numbers and operations alone: the same computation in another story is the same problem
        key = []
        for line in problem.columns["solution"].splitlines():
            left, sign, right = line.split(" = ")[0].split()
            key.append((sign, *(sorted((int(left), int(right))) if sign in "+*" else (int(left), int(right)))))
        return tuple(key)

    # two steps have the fewest problems, so an overlap would show there first
    held_out = {computation(problem) for seed in (0, 1) for problem in word_problems.held_out_problems(500, seed, 2)}
    training = {computation(word_problems.training_problem(seed, i, 2)) for seed in (0, 1) for i in range(4000)}
    assert len(held_out) > 700 and len(training) > 4000 and not held_out & training


def test_the_same_computation_in_another_order_or_story_is_one_problem():
    one = word_problems.Problem("", {"solution": "3 * 5 = 15\n20 + 15 = 35"})
    other = word_problems.Problem("", {"solution": "5 * 3 = 15\n15 + 20 = 35"})
    reverse = word_problems.Problem("", {"solution": "3 * 5 = 15\n20 - 15 = 5"})
    assert word_problems._canonical(one) == word_problems._canonical(other) != word_problems._canonical(reverse)
    assert is_held_out(word_problems._canonical(one)) == is_held_out(word_problems._canonical(other))


def test_problems_are_functions_of_seed_and_index():
    assert word_problems.training_problem(3, 7) == word_problems.training_problem(3, 7)
    assert word_problems.training_problem(3, 7) != word_problems.training_problem(4, 7)
    assert word_problems.held_out_problems(40) == word_problems.held_out_problems(60)[:40]
    assert word_problems.held_out_problems(40) != word_problems.held_out_problems(40, seed=1)
    # pinned: other problems under the same seed would make scores of two versions incomparable
    first = word_problems.held_out_problems(1)[0]
    assert (first.question, first.columns["answer"]) == PINNED


def test_stories_names_and_answers_vary():
    problems = word_problems.held_out_problems(600)
    texts = " ".join(problem.question for problem in problems)
    assert all(name in texts for name in NAMES)
    first_words = Counter(STORY_SIGNS.index(sign) for p in problems for sign in [_story_of(p.question)])
    assert len(first_words) == len(STORIES) == 10 and min(first_words.values()) > 15
    assert {problem.columns["steps"] for problem in problems} == set(range(2, 9))
    # no answer is right by guessing: the most common one is rare
    assert Counter(problem.columns["answer"] for problem in problems).most_common(1)[0][1] < 25


STORY_SIGNS = (
    ("stickers", "stamps", "postcards", "badges", "bookmarks", "football cards"),
    ("baker",),
    ("passengers",),
    ("dollars",),
    ("eggs",),
    ("marbles", "shells", "books", "pencils", "beads", "photos"),
    ("kilometres",),
    ("library",),
    ("tank",),
    ("workshop",),
)


def _story_of(question: str) -> tuple[str, ...]:
    order = (1, 2, 4, 7, 8, 9, 6, 0, 5, 3)  # the most special signs first: `dollars` and `books` are in many
    opening = question.split(". ")[0].lower()
    for number in order:
        if any(sign in opening for sign in STORY_SIGNS[number]):
            return STORY_SIGNS[number]
    raise AssertionError(question)


def test_the_language():
    for index in range(1500):
        question = word_problems.training_problem(11, index).question
        sentences = re.findall(r"[^.?]+[.?]", question)
        assert "".join(sentences) == question and question.endswith("?") and question.count("?") == 1
        assert all(sentence.strip()[0].isupper() for sentence in sentences), question
        assert "{" not in question and "  " not in question
        # plural forms are right because no text speaks of one or none
        assert not re.search(r"\b[01]\b", question), question
        assert not re.search(r"\ba [aeiou]", question, re.IGNORECASE), question
        # what is counted stands in the plural behind its number
        for noun in re.findall(r"\b\d+ (?:more |other |burnt |worn |broken |fewer )?([a-z]+)", question):
            assert noun.endswith("s") or noun in {"people", "of", "in", "and", "o", "sheep", "old", "apple",
                                                  "picture", "football", "rose"}, (noun, question)  # fmt: skip


def test_every_sentence_has_the_fields_of_its_kind():
    numbers = {
        "given": {"b"}, "ask": set(), "groups": {"p", "q"}, "add": {"b"}, "take": {"b"}, "swap": {"b", "c"},
        "times": {"times"}, "half": set(), "share": {"k"}, "share_price": {"k", "c"}, "price": {"k"}, "from": {"b"},
        "add_groups": {"p", "q"}, "take_groups": {"p", "q"}, "plus_first": set(), "minus_first": set(),
    }  # fmt: skip
    for story in STORIES:
        known = {"name", "friend", "first", "next", *story.words, *story.places}
        for kind, text in (*story.openings, *story.events, *story.closings):
            fields = {field for _, field, _, _ in Formatter().parse(text) if field}
            assert fields - known == numbers[kind], text
        for text in story.asides:
            assert {field for _, field, _, _ in Formatter().parse(text) if field} - known == {"d"}, text


def test_what_cannot_be_made_is_refused(monkeypatch):
    monkeypatch.setattr(generated, "PATIENCE", 20)
    with pytest.raises(DataError, match=r"\d+ held-out word problems of 2 steps were found, and 1000000 are wanted"):
        word_problems.held_out_problems(10**6, steps=2)
    for steps in (1, 9):
        with pytest.raises(ValueError, match=f"steps = {steps}: word problems have 2 to 8 steps"):
            word_problems.training_problem(0, 0, steps)

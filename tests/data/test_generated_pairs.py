"""Pairs of generated sums: what is right, what is wrong, and that wording gives nothing away."""

from collections import Counter

import pytest

from rlhf.data.arithmetic import held_out_problems, training_problem
from rlhf.data.generated import Draws, Problem
from rlhf.data.generated_pairs import pair_fields, wrong_answers
from rlhf.data.types import Prompt
from rlhf.rewards import score_completion

LEVELS = pytest.mark.parametrize("level", range(1, 6))


@LEVELS
def test_the_grader_agrees_with_every_pair(level):
    for index in range(200):
        problem = training_problem(level, 0, index)
        pair = pair_fields(problem, Draws("test", index))
        prompt = Prompt("p", (1,), problem.question, problem.columns, "arithmetic")
        assert pair["prompt"] == problem.question
        assert score_completion(prompt, pair["chosen"]).outcome == "right", pair
        assert score_completion(prompt, pair["rejected"]).outcome == "wrong", pair


@pytest.mark.parametrize(
    ("expression", "gold", "slips"),
    [
        ("27 + 15", 42, {"one_more": 43, "one_less": 41, "two_more": 44, "two_less": 40, "ten_more": 52,
                         "ten_less": 32, "digits_swapped": 24, "carry_lost": 32, "subtracted": 12}),
        ("3 + 4", 7, {"one_more": 8, "one_less": 6, "two_more": 9, "two_less": 5, "ten_more": 17}),
        ("12 - 30", -18, {"one_more": -17, "one_less": -19, "two_more": -16, "two_less": -20, "ten_more": -8,
                          "ten_less": -28, "digits_swapped": -81, "added": 42, "sign_lost": 18}),
        ("12 * 13", 156, {"one_more": 157, "one_less": 155, "two_more": 158, "two_less": 154, "ten_more": 166,
                          "ten_less": 146, "digits_swapped": 651, "added": 25, "a_row_less": 144, "a_row_more": 168}),
    ],
)  # fmt: skip
def test_slips_are_those_of_a_person(expression, gold, slips):
    assert wrong_answers(expression, gold) == slips


def test_wording_does_not_tell_right_from_wrong():
    wordings = {"chosen": Counter(), "rejected": Counter()}
    pairs = [pair_fields(training_problem(2, 0, i), Draws("test", i)) for i in range(4_000)]
    for name, counts in wordings.items():
        counts.update(pair[name].isdigit() for pair in pairs)
    shares = [counts[True] / len(pairs) for counts in wordings.values()]
    # 6 of 12 wordings; standard deviation of a share is 0.008
    assert shares == pytest.approx([1 / 2, 1 / 2], abs=0.03)


def test_numbers_alone():
    for index in range(100):
        pair = pair_fields(training_problem(2, 0, index), Draws("test", index), "number")
        assert pair["chosen"].isdigit() and pair["rejected"].isdigit() and pair["chosen"] != pair["rejected"]


def test_a_pair_is_a_function_of_its_draws():
    problem = training_problem(2, 0, 0)
    assert pair_fields(problem, Draws("a", 1)) == pair_fields(problem, Draws("a", 1))
    assert len({str(pair_fields(problem, Draws("a", i))) for i in range(50)}) > 20


def test_held_out_sums_make_pairs_too():
    pairs = [pair_fields(problem, Draws("h", i)) for i, problem in enumerate(held_out_problems(2, 100))]
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)


def test_another_question_is_refused():
    with pytest.raises(ValueError, match=r"is no generated sum.*data\.type arithmetic"):
        pair_fields(Problem("Make 7 of 3 and 4.", {"answer": "7"}), Draws("x"))

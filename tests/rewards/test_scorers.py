"""The scorers of generated tasks: exact, and nothing of a completion runs."""

from pathlib import Path
from typing import Any

import pytest

from rlhf.data import arithmetic, countdown
from rlhf.data.types import Prompt
from rlhf.rewards import score_completion
from rlhf.rewards.scorers import score_arithmetic, score_countdown
from tests.cpu_time import cpu_seconds

NUMBERS = [3, 5, 7, 25]


@pytest.mark.parametrize(
    ("completion", "gold", "outcome"),
    [
        ("12", "12", "right"),
        ("The answer is 12.", "12", "right"),
        ("1,234", "1234", "right"),
        ("1234", "1,234", "right"),
        ("3 - 5 = -2", "-2", "right"),
        ("\u22122", "-2", "right"),
        ("12.0", "12", "right"),
        ("012", "12", "right"),
        ("<think>12</think> 13", "13", "right"),
        ("\\boxed{12}", "12", "right"),
        ("9" * 6000, "9" * 6000, "right"),
        ("7 + 5 = 13", "12", "wrong"),
        ("3-5", "-5", "wrong"),
        ("12.5", "12", "wrong"),
        ("12 or 13", "12", "wrong"),
        ("1,2", "12", "wrong"),
        ("-12", "12", "wrong"),
        ("twelve", "12", "wrong"),
        ("", "12", "wrong"),
        ("<think>12", "12", "wrong"),
        ("9" * 100_000, "9", "wrong"),
        ("⁵ ٥ Ƽ", "5", "wrong"),
        ("12", "many", "ungradable"),
        ("12", "1.5", "ungradable"),
    ],
)
def test_arithmetic(completion: str, gold: str, outcome: str) -> None:
    assert score_arithmetic(completion, gold).outcome == outcome


@pytest.mark.parametrize(
    "completion",
    [
        "(3 + 5) * 7 - 25",
        "We try it.\n\n(3 + 5) * 7 - 25 = 31",
        r"So $\boxed{(3+5) \times 7 - 25}$.",
        r"\boxed{\left(3+5\right)\cdot 7 - 25 = 31}",
        "<answer>(3+5)*7-25</answer>",
        "<think>25+3+5=33</think>\nAnswer: (5+3)*7-25",
        "7*(3+5)−25",
        "First 25 + 7 = 32.\nThen (3+5)×7−25.",
        "-25 + (3 + 5) * 7",
    ],
)
def test_countdown_right(completion: str) -> None:
    verdict = score_countdown(completion, NUMBERS, 31)
    assert verdict.outcome == "right", verdict


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("25 + 7", "the value is 32"),
        ("25 + 3 + 3", "uses 3 more often than given"),
        ("31", "no expression"),
        (r"\boxed{31}", "uses 31 more often than given"),
        ("25 + 6", "uses 6 more often than given"),
        ("", "no expression"),
        ("<think>25+6</think>", "no expression"),
        ("<answer>25 // 3</answer>", "may hold only"),
        ("<answer>3 ** 5</answer>", "may hold only"),
        ("<answer>9**9**9</answer>", "may hold only"),
        ("<answer>25 % 7</answer>", "may hold only"),
        ("<answer>25 / (5 - 5)</answer>", "division by zero"),
        ("<answer>__import__('os').system('touch graderpwned')</answer>", "may hold only"),
        ("<answer>(lambda: 31)()</answer>", "may hold only"),
        ("<answer>31 if 1 else 0</answer>", "may hold only"),
        ("<answer>3.5 * 2</answer>", "may hold only"),
        ("<answer>0x1f</answer>", "may hold only"),
        ("<answer>3 +</answer>", "not an arithmetic expression"),
        ("<answer>(25, 3)</answer>", "may hold only"),
        ("<answer>25(3)</answer>", "may hold only"),
        ("<answer>" + "9" * 150 + "</answer>", "may hold only"),
        ("<answer>" + "(" * 199 + "</answer>", "not an arithmetic expression"),
        ("<answer>" + "3+" * 5000 + "3</answer>", "more than 200 characters"),
        ("<answer>" + "-" * 190 + "3</answer>", "the value is 3"),
    ],
)
def test_countdown_wrong(completion: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    verdict = score_countdown(completion, NUMBERS, 31)
    assert verdict.outcome == "wrong"
    assert reason in verdict.reason
    assert list(tmp_path.iterdir()) == []


def test_countdown_counts_equal_numbers() -> None:
    assert score_countdown("5 + 5", [5, 5, 2], 10).outcome == "right"
    assert score_countdown("5 + 5", [5, 2], 10).outcome == "wrong"


def test_countdown_is_exact_in_fractions() -> None:
    assert score_countdown("8 / (3 - 8 / 3)", [3, 3, 8, 8], 24).outcome == "right"


@pytest.mark.parametrize("unit", ["1+", "(", "3*(", "\\boxed{", "<answer>", "=", "\n1+1", "9"])
def test_a_megabyte_takes_well_under_a_second(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    assert cpu_seconds(lambda: (score_countdown(text, NUMBERS, 31), score_arithmetic(text, "31"))) < 2.0


def test_the_solutions_of_the_generators_are_right() -> None:
    for index in range(30):
        problem = countdown.training_problem(4, 20, 0, index)
        prompt = Prompt(f"countdown:{index}", (1,), problem.question, problem.columns, scorer="countdown")
        assert score_completion(prompt, f"I find {problem.columns['answer']}").outcome == "right"
        assert score_completion(prompt, f"I find {problem.columns['answer']} + 1").outcome == "wrong"
        problem = arithmetic.training_problem(3, 0, index)
        prompt = Prompt(f"arithmetic:{index}", (1,), problem.question, problem.columns, scorer="arithmetic")
        assert score_completion(prompt, f"It is {problem.columns['answer']}.").outcome == "right"
        assert score_completion(prompt, f"It is {problem.columns['answer']}1.").outcome == "wrong"


@pytest.mark.parametrize(
    ("scorer", "columns", "missing"),
    [("math", {"question": "?"}, "'answer'"), ("countdown", {"answer": "1+1", "target": 2}, "'numbers'")],
)
def test_a_missing_gold_column_is_an_error_that_names_it(scorer: Any, columns: dict[str, Any], missing: str) -> None:
    with pytest.raises(ValueError, match=f"prompt 'p:3'.*{missing}"):
        score_completion(Prompt("p:3", (1,), "?", columns, scorer=scorer), "2")

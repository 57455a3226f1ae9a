"""The grading policy in 1,900 boxed answers (`policy_cases.txt`) and in the solutions of two data sets.

Policy: the last box counts; without one, the last "answer is" / "Answer:" / "####" / <answer>, else the last number;
text inside <think> does not count; values are exact, without rounding; several alternatives for a one-valued gold
answer are wrong; percent signs, units, degree and currency signs may be dropped or added, but nothing is scaled by
100; sets and solution lists are unordered, points and intervals ordered; open and closed ends differ; names ignore
case.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rlhf.rewards import grade

DATA = Path(os.environ.get("RLHF_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def blocks() -> list[Any]:
    """Of `policy_cases.txt`: a gold answer at the start of a line, below it those that are right (=) and wrong (!)."""
    found: list[Any] = []
    category, gold, answers = "", "", {"=": [], "!": []}
    lines = (Path(__file__).with_name("policy_cases.txt")).read_text(encoding="utf-8").splitlines()
    for line in [*lines, "#"]:
        if line.startswith("  "):
            answers[line[2]] += line[4:].split(" ;; ")
            continue
        if gold:
            found.append(pytest.param(gold, answers["="], answers["!"], id=f"{category}: {gold}"))
        gold, answers = "", {"=": [], "!": []}
        if line.startswith("#"):
            category = line[2:]
        else:
            gold = line
    return found


def outcome(answer: str, gold: str) -> str:
    return grade(f"So the result is $\\boxed{{{answer}}}$.", gold).outcome


@pytest.mark.parametrize(("gold", "right", "wrong"), blocks())
def test_every_spelling_of_the_gold_answer_is_right_and_nothing_else(
    gold: str, right: list[str], wrong: list[str]
) -> None:
    assert [answer for answer in right if outcome(answer, gold) != "right"] == []
    assert [answer for answer in wrong if outcome(answer, gold) == "right"] == []


def test_every_reference_solution_of_gsm8k_is_right_for_its_gold_answer_only(rows: Any) -> None:
    for row in rows("gsm8k/train.jsonl"):
        gold = row["answer"].rpartition("####")[2].strip()
        other = str(int(gold.replace(",", "")) + 1)
        for completion in (row["answer"], f"\\boxed{{{gold}}}", f"So the answer is {gold}.", f"She pays ${gold}."):
            assert grade(completion, gold).outcome == "right", (gold, completion)
            assert grade(completion, other).outcome == "wrong", (other, completion)


def test_every_answer_of_svamp_is_right_in_a_sentence_and_one_more_is_wrong() -> None:
    path = DATA / "svamp" / "SVAMP.json"
    if not path.is_file():
        pytest.skip(f"there is no {path}: set RLHF_TEST_DATA to the folder of the test data")
    for row in json.loads(path.read_text(encoding="utf-8")):
        value = row["Answer"]
        if value != float(f"{value:g}"):
            continue  # 0.333333... and the like have no short spelling
        spellings = (f"The answer is {value:g}.", f"\\boxed{{{value}}}", f"#### {value:g}", f"So {value:.4f} in all")
        for completion in spellings:
            assert grade(completion, str(value)).outcome == "right"
        assert grade(f"The answer is {value + 1:g}.", str(value)).outcome == "wrong"

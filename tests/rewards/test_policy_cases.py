"""The grading policy in over 1,800 cases: `policy_cases.txt` (what stands in the box) and where an answer is found.

Policy: the last box counts; without one, the last "answer is" / "Answer:" / "####" / <answer>, else the last number;
text inside <think> does not count; values are exact, without rounding; several alternatives for a one-valued gold answer
are wrong; percent signs, units, degree and currency signs may be dropped or added, but nothing is scaled by 100; sets and
solution lists are unordered, points and intervals ordered; open and closed ends differ; names ignore case.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rlhf.rewards import grade

DATA = Path(os.environ.get("RLHF_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))

FOUND = [
    ("42", "The answer is 42"),
    ("42", "the answer is: 42."),
    ("42", "Answer: 42"),
    ("42", "ANSWER: 42"),
    ("42", "answer: **42**"),
    ("42", "**Answer:** 42"),
    ("42", "**Answer: 42**"),
    ("42", "Final Answer: 42"),
    ("42", "Final answer: $42$"),
    ("42", "Final Answer: The final answer is $42$. I hope it is correct."),
    ("42", "The final answer is 42."),
    ("42", "The final answer is: $\\boxed{42}$. I hope it is correct."),
    ("42", "So, the answer is 42 apples."),
    ("42", "The answer is $42$."),
    ("42", "The answer is \\(42\\)."),
    ("42", "The answer is \\[42\\]"),
    ("42", "The answer is\n\n42"),
    ("42", "The answer is\n$$42$$"),
    ("42", "The answer is **42**."),
    ("42", "The answer is therefore 42."),
    ("42", "The correct answer is 42."),
    ("42", "Thus the answer to the question is 42."),
    ("42", "Hence our answer is 42!"),
    ("42", "#### 42"),
    ("42", "####42"),
    ("42", "#### 42."),
    ("42", "#### $42"),
    ("42", "#### 42 dollars\n"),
    ("42", "#### **42**"),
    ("1042", "#### 1,042"),
    ("-42", "#### -42"),
    ("42", "reasoning with 7 and 9\n\n#### 42\n"),
    ("42", "<answer>42</answer>"),
    ("42", "<answer>\n42\n</answer>"),
    ("42", "<answer>$42$</answer>"),
    ("42", "<answer>The answer is 42</answer>"),
    ("42", "<answer>\\boxed{42}</answer>"),
    ("42", "<think>41</think><answer>42</answer>"),
    ("42", "<think>\nLet me think: \\boxed{40}\n</think>\n\n\\boxed{42}"),
    ("42", "<think>x</think>42"),
    ("42", "reason \\boxed{41} </think> The answer is 42."),
    ("42", "The answer is 41. Wait, no. The answer is 42."),
    ("42", "\\boxed{41} wait, \\boxed{42}"),
    ("42", "We have \\boxed{a=40}. Finally $\\boxed{42}$."),
    ("42", "$\\boxed{42}$ where 3 of them are blue and 4 red."),
    ("42", "It is \\boxed{42}. The answer is 41."),
    ("42", "\\boxed{ 42 }"),
    ("42", "\\boxed{\n42\n}"),
    ("42", "$$\\boxed{42}$$"),
    ("42", "\\[\\boxed{42}\\]"),
    ("42", "\\(\\boxed{42}\\)"),
    ("42", "\\boxed {42}"),
    ("42", "\\fbox{42}"),
    ("42", "$\\boxed{\\boxed{42}}$"),
    ("42", "\\boxed{\\text{42}}"),
    ("42", "**\\boxed{42}**"),
    ("42", "\\boxed{$42$}"),
    ("42", "\\boxed{\\(42\\)}"),
    ("42", "`\\boxed{42}`"),
    ("42", "\\boxed{\\mathbf{42}}"),
    ("42", "\\boxed{42}$"),
    ("42", "$ \\boxed{42} $ apples"),
    ("\\frac{1}{2}", "\\boxed{\\frac{1}{2}}"),
    ("\\frac{1}{2}", "The answer is $\\frac{1}{2}$."),
    ("\\frac{1}{2}", "The answer is 1/2."),
    ("\\frac{1}{2}", "The answer is \\frac{1}{2}"),
    ("\\frac{1}{2}", "Answer: $\\frac12$"),
    ("\\frac{1}{2}", "So we get 1/2"),
    ("0.5", "so it is 0.5"),
    ("0.5", "so it is .5"),
    ("42", "He has 42"),
    ("42", "He has 42."),
    ("42", "He has 42 apples."),
    ("42", "3 + 39 = 42"),
    ("42", "So he pays $42."),
    ("42", "So he pays $42.00"),
    ("1042", "In total 1,042 people."),
    ("1042", "In total: 1042!"),
    ("-5", "The temperature is -5 degrees."),
    ("-5", "x = -5"),
    ("42", "He earns 42 dollars.\n"),
    ("42", "So x = 42%"),
    ("42", "= 42"),
    ("42", "42"),
    ("42", " 42\n\n"),
    ("42", "$42$"),
    ("42", "\\(42\\)"),
    ("42", "**42**"),
    ("42", "x=42"),
    ("3.5", "x = 3.5."),
    ("42", "The total cost is: $42"),
    ("18", "Janet makes 9 * 2 = 18 dollars every day."),
    ("42", "Therefore, he needs 42 more apples. "),
    ("x+1", "The answer is $x+1$."),
    ("x+1", "Answer: x+1"),
    ("\\text{Monday}", "The answer is Monday."),
    ("\\text{Monday}", "Answer: Monday"),
    ("(1,2)", "The answer is $(1,2)$."),
    ("(1,2)", "Answer: (1, 2)"),
    ("1,2", "The answer is 1 and 2."),
    ("1,2", "The answers are 1 and 2."),
    ("1,2", "The solutions are \\boxed{1, 2}."),
    ("\\pi", "The answer is $\\pi$."),
    ("2\\sqrt{3}", "The answer is $2\\sqrt{3}$."),
    ("2\\sqrt{3}", "The answer is 2√3."),
    ("(B)", "The answer is (B)."),
    ("\\text{(B)}", "The answer is B."),
    ("B", "Answer: B"),
    ("B", "The correct option is \\boxed{B}"),
    ("42", "The answer is $x = 42$."),
    ("42", "The answer is x = 42."),
    ("42", "The answer is approximately... no: exactly \\boxed{42}."),
    ("42", "Let me box it: $\\boxed{42}$\n\nIs there anything else? 1) yes 2) no"),
    ("42", "```\n\\boxed{42}\n```"),
    ("42", "Step 1: 6*7=42\nStep 2: done\n\n**Final Answer**\n\n\\boxed{42}"),
    ("42", "### Final Answer\n42"),
    ("42", "**Final Answer**: 42"),
    ("42", "*Answer*: 42"),
    ("42", "Answer = 42"),
    ("42", "Réponse : \\boxed{42}"),
    ("42", "答案是 \\boxed{42}。"),
    ("42", "The final answer is \\boxed{42} \\blacksquare"),
    ("42", "answer is 42<|im_end|>"),
    ("42", "\\boxed{42}<|endoftext|>"),
    ("42", "The answer is 42.\n\nQuestion: what is 7? Answer is unknown. \\boxed{42}"),
    ("42", "Thus, $x+y = 42$."),
    ("42", "The answer is: \n\n$$ 42 $$"),
    ("42", "The answer is **$42$**"),
    ("42", "The answer is $\\mathbf{42}$"),
    ("42", "The answer is 6 × 7 = 42."),
    ("42", "The answer is 6 * 7 = 42 apples."),
    ("72", "Natalia sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72"),
    ("1,000", "The answer is 1000"),
    ("1000", "The answer is $1,000."),
    ("1000000", "The answer is 1,000,000."),
    ("12", "The answer is 12 cm."),
    ("12", "The answer is 12cm^2."),
    ("60", "The answer is 60°."),
    ("60", "The answer is 60 degrees."),
    ("50", "The answer is 50%."),
    ("3/4", "The answer is 3/4 cup."),
]
NOT_FOUND = [
    ("42", "The answer is 41"),
    ("42", "The answer is 42 or 43."),
    ("42", "Answer: 43"),
    ("42", "#### 43"),
    ("42", "He had 42, and now he has 43."),
    ("42", "\\boxed{43} not 42"),
    ("42", "<think>42</think> 43"),
    ("42", "<think>\\boxed{42}</think>I do not know"),
    ("42", "\\boxed{42} no wait \\boxed{43}"),
    ("42", "The answer is 42. No: the answer is 43."),
    ("42", ""),
    ("42", "I cannot tell."),
    ("42", "\\boxed{}"),
    ("42", "\\boxed{ }"),
    ("42", "The answer is unknown."),
    ("42", "#### "),
    ("42", "#### none"),
    ("42", "<answer></answer>"),
    ("42", "<answer>41</answer>"),
    ("42", "42 apples were sold for 7 dollars each, so we get 294."),
    ("42", "4 2"),
    ("42", "The answer is 142."),
    ("42", "The answer is 4.2"),
    ("42", "The answer is -42"),
    ("42", "The answer is 420."),
    ("42", "It is 42.5"),
    ("42", "It is 1/42"),
    ("42", "42/5"),
    ("42", "\\boxed{41} 42"),
    ("42", "The answer is \\boxed{41}, which is close to 42."),
    ("42", "#### 42\n#### 41"),
    ("42", "The answer is not 42."),
    ("42", "answer is 4 2"),
    ("42", "Answer: 42, 43"),
    ("42", "Answer: [42, 43]"),
    ("42", "Answer: x"),
    ("-5", "The answer is 5."),
    ("5", "The answer is -5"),
    ("5", "10 - 5 = 6"),
    ("0.5", "The answer is 5."),
    ("42", "put your final answer within \\boxed{}"),
    ("42", "The answer is $x$ where x is a number"),
    ("1042", "The answer is 1,42"),
    ("1042", "In total 1 and 42 people"),
    ("42", "The answer is forty-one"),
]


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


@pytest.mark.parametrize(("gold", "completion"), FOUND)
def test_the_answer_of_a_completion_is_found(gold: str, completion: str) -> None:
    assert grade(completion, gold).outcome == "right"


@pytest.mark.parametrize(("gold", "completion"), NOT_FOUND)
def test_another_number_of_a_completion_is_not_its_answer(gold: str, completion: str) -> None:
    assert grade(completion, gold).outcome == "wrong"


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

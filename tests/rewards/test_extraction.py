"""Which part of a completion counts as its answer."""

import pytest

from rlhf.rewards import grade
from rlhf.rewards.extraction import extract, without_thinking

RIGHT = [
    ("42", "\\boxed {42}"),
    ("42", "\\boxed\n{42}"),
    ("42", "$$\\boxed{42}$$"),
    ("\\frac{3}{4}", "Answer: $\\frac{3}{4}$"),
    ("C", "The answer is (C)"),
    ("C", "The answer is (C)."),
    ("C", "Answer: C"),
    ("42", "Final Answer: The final answer is $42$. I hope it is correct."),
    ("42", "**Answer**: 42"),
    ("42", "**Answer:** 42"),
    ("42", "The answer is: 42"),
    ("42", "The answer is $x=42$."),
    ("42", "Answer: 42 apples"),
    ("42", "The final answer is 42!"),
    ("42", "####42"),
    ("42%", "The answer is 42%."),
    ("42", "answer = 42"),
    ("42", "The answer is\n42"),
    ("42", "### Final Answer\n\n42"),
    ("42", "Answer:\n$$42$$"),
    ("42", "Answer:\n\\[ 42 \\]"),
    ("42", "Answer: \\(42\\)"),
    ("42", "So we get 42."),
    ("-42", "So we get -42."),
    ("42", "So 50 - 8 = 42"),
    ("3.5", "it costs $3.50."),
    ("1000", "total of 1,000 dollars."),
    ("\\frac{1}{2}", "So we get $\\frac{1}{2}$."),
    ("0.5", "So we get 1/2."),
    ("42", "<think>a</think> <answer>\\boxed{42}</answer>"),
    ("42", "<answer>42"),
    ("42", "<answer>The total is 42.</answer>"),
    ("42", "reasoning </think> The answer is 42"),
    ("42", "<think>41</think>42"),
    ("42", "**42**"),
    ("42", "*42*"),
    ("42", "`42`"),
    ("Evelyn", "The answer is Evelyn."),
    ("\\text{Evelyn}", "The answer is **Evelyn**."),
    ("18", "The answer is 18 because 9*2 is 18 and 3 are left."),
    ("(3,4)", "The answer is (3,4)."),
    ("(3,\\frac{\\pi}{2})", "The answer is $(3,\\frac{\\pi}{2})$."),
    ("3,5", "The answer is 3 and 5."),
    ("3,5", "The answers are 3 and 5."),
    ("x^2+1", "The answer is x^2+1."),
    ("12", "#### 12\n"),
    ("12", "#### $12"),
    ("12", "#### 12.00"),
    ("5", "\\boxed{5}. I have put the answer within \\boxed{}."),
    ("5", "put it in \\boxed{}. The answer is 5"),
    ("42", "The answer is 42<|im_end|>"),
    ("42", "Answer: 42</s>"),
    ("42", "ANSWER: 42"),
    ("42", "The correct answer is 42."),
    ("42", "answer:42"),
    ("42", "the answer is \\$42"),
    ("42", "Thus, x = 42"),
    ("2\\sqrt{3}", "The answer is $2\\sqrt{3}$"),
    ("2\\sqrt{3}", "The answer is 2√3."),
    ("42", "the answer is indeed 42"),
    ("18", "#### 18 dollars per day"),
    ("y=2x+3", "The equation is $y=2x+3$"),
    ("70000", "#### 70,000"),
    ("5", "$\\boxed{\\text{5}}$"),
    ("5", "\\boxed{5} \\boxed{}"),
    ("-3", "The answer is - 3"),
    ("-3", "result: −3"),
    ("60", "The answer is 60°"),
    ("3", "= 3"),
    ("0.25", "Answer: 0.25."),
    ("42", "The answer is 6*7 = 42."),
    ("7", "**Final Answer**\n\n\\[\n7\n\\]"),
    ("7", "**Final Answer**: 7 ✅"),
    ("1/2", "\\boxed{\\frac{1}{2}}\n\nThe answer is 3"),
    ("5", "Answer: $5$ and $6$ are not"),
]
WRONG = [
    ("5", "The answer is 6, not 5."),
    ("42", "the answer is 420"),
    ("5", "5 is not it; the answer is 7"),
    ("5", ""),
    ("42", "42 \\boxed{41}"),
    ("42", "<think>\\boxed{42}</think>"),
    ("42", "\\boxed{42"),
    ("42", "The answer is 4 2"),
    ("3", "So 5-8 = -3"),
    ("5", "I got 5. The answer is"),
    ("5", "[1,5]"),
    ("5", "The answer is 5 or 6."),
    ("5", "Answer: 5, 6"),
    ("5", "\\boxed{answer}"),
    ("18", "#### 18\n#### 19"),
    ("5", "5/7"),
    ("12", "3,12"),
    ("5", "The answer is 1-5"),
]


@pytest.mark.parametrize(("gold", "completion"), RIGHT)
def test_the_answer_is_found(gold: str, completion: str) -> None:
    assert grade(completion, gold).outcome == "right"


@pytest.mark.parametrize(("gold", "completion"), WRONG)
def test_nothing_else_is_taken_for_the_answer(gold: str, completion: str) -> None:
    assert grade(completion, gold).outcome == "wrong"


def test_an_echo_of_the_prompt_is_no_answer() -> None:
    prompt = "What is 2+3? For example, answer \\boxed{5}."
    assert grade(f"{prompt} I do not know.", "5", prompt).reason == "no answer found"
    assert grade(f"{prompt} It is \\boxed{{5}}.", "5", prompt).outcome == "right"


@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("a <think>b</think> c", "a   c"),
        ("b</think> c", " c"),
        ("a <think>b", "a "),
        ("<think>a<think>b</think>c</think>d", "d"),
        ("<THINK>a</THINK>b", " b"),
        ("no tags", "no tags"),
    ],
)
def test_thinking_is_cut_out(text: str, outside: str) -> None:
    assert without_thinking(text).split() == outside.split()


@pytest.mark.parametrize(
    ("text", "answer", "source"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}} and {x}", r"\frac{1}{2}", "box"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "box"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right.", "box"),
        (r"so $\boxed 42$ it is", "42", "box"),
        (r"{{{ \boxed{5} }", "5", "box"),
        ("The answer is 6. The answer is 7.", "7", "phrase"),
        ("from 3 to -4", "-4", "number"),
        ("10-4", "4", "number"),
        ("nothing", None, "none"),
    ],
)
def test_source_of_the_answer(text: str, answer: str | None, source: str) -> None:
    found = extract(text)
    assert (found.text, found.source) == (answer, source)

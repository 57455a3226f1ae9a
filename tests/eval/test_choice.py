"""Which option a completion chose: boxes, phrases, values, letters that are words, hostile texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.choice import score_choice
from tests.cpu_time import cpu_seconds

OPTIONS = ("21", "32.5", r"\frac{3}{4}", "45 km", "None of these")

CASES = [
    # the last box, in the spellings that models use
    (r"So \boxed{C}.", "C"),
    (r"\boxed{A} was my first idea, but it is \boxed{D}", "D"),
    (r"\boxed{\text{B}}", "B"),
    (r"\boxed{\textbf{(E)}}", "E"),
    (r"\boxed{(B)}", "B"),
    (r"\boxed{\text{(C) } \frac{3}{4}}", "C"),
    (r"\boxed{D) 45 km}", "D"),
    (r"\boxed{Option B}", "B"),
    (r"\boxed{c}", "C"),
    # a value that is exactly one option's
    (r"\boxed{21}", "A"),
    (r"\boxed{0.75}", "C"),
    (r"\boxed{45}", "D"),
    (r"\boxed{\frac{65}{2}}", "B"),
    (r"The box counts: \boxed{A}. The answer is (B).", "A"),
    # answer phrases
    ("The answer is (C).", "C"),
    ("The answer is C", "C"),
    ("The correct answer is: **(D)**", "D"),
    ("Answer: B", "B"),
    ("Final answer: option E.", "E"),
    ("#### D", "D"),
    ("The answer is A. B is too large.", "A"),
    ("The answer is B, A being too small.", "B"),
    ("The answer is B because C is too small.", "B"),
    ("The answer is 21.", "A"),
    ("So the answer is 45 km, that is D. The answer is 32.5.", "B"),
    # the last capital letter that stands alone
    ("Comparing all of them, only option D fits.", "D"),
    ("(A) is too small and (B) too large, so it must be (C)", "C"),
    ("I would choose C. A train is slower.", "C"),
    ("B or C? So option A gives the right value", "A"),
    ("<think>The answer is (A).</think> (B)", "B"),
]


@pytest.mark.parametrize(("completion", "letter"), CASES)
def test_the_chosen_option(completion, letter):
    verdict = score_choice(completion, letter, OPTIONS)
    assert (verdict.outcome, verdict.extracted) == ("right", letter), verdict
    for other in set("ABCDE") - {letter}:
        assert score_choice(completion, other, OPTIONS).outcome == "wrong"


@pytest.mark.parametrize(
    "completion",
    ["", "I do not know.", r"\boxed{F}", r"\boxed{22}", r"\boxed{AB}", "A train leaves at noon.", r"\boxed{C", "Z",
     "21", r"\boxed{A, B}", r"\boxed{(B) \text{ or } (C)}", "The answer is B and C.", "Answer: A, B, C",
     r"(C) looks right, so \boxed{", "<think>The answer is (C).", "CAB"],
)  # fmt: skip
def test_no_option_is_wrong_under_every_gold(completion):
    assert {score_choice(completion, letter, OPTIONS).outcome for letter in "ABCDE"} == {"wrong"}


def test_a_value_that_two_options_have_names_none():
    options = ("0.5", r"\frac{1}{2}", "2")
    assert score_choice(r"\boxed{1/2}", "A", options).outcome == "wrong"
    assert score_choice(r"\boxed{1/2}", "B", options).outcome == "wrong"
    assert score_choice(r"\boxed{B}", "B", options).outcome == "right"


def test_a_percentage_is_not_scaled():
    options = ("25%", "0.25%", "2.5%")
    assert score_choice(r"\boxed{25\%}", "A", options).extracted == "A"
    assert score_choice(r"\boxed{0.25}", "B", options).extracted == "B"


def test_a_gold_letter_that_no_option_has_is_ungradable():
    verdict = score_choice("The answer is (C).", "F", OPTIONS)
    assert verdict.outcome == "ungradable" and "'F' is none of ABCDE" in verdict.reason
    for gold in ("", "AB", "c"):
        assert score_choice("C", gold, OPTIONS).outcome == "ungradable"
    assert score_choice("C", "C", ()).outcome == "ungradable"


@pytest.mark.parametrize(
    "completion",
    [
        r"\boxed{" * 20_000,
        "(" * 50_000 + "C",
        "A " * 50_000,
        "answer is " * 20_000,
        r"\boxed{" + "9" * 100_000 + "}",
        r"\boxed{9^{9^{9^{9}}}}",
        "__import__('os').system('touch graderpwned')",
        "\ud800 \x00 C",
    ],
)
def test_hostile_texts_end_soon(completion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cpu_seconds(lambda: score_choice(completion, "C", OPTIONS)) < 2.0
    assert not list(tmp_path.iterdir())


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200), gold=st.sampled_from("ABCDE"))
def test_any_text_has_a_verdict_and_at_most_one_gold_fits(text, gold):
    outcomes = [score_choice(text, letter, OPTIONS).outcome for letter in "ABCDE"]
    assert outcomes.count("right") <= 1 and "ungradable" not in outcomes

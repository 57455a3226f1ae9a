"""Figures of a benchmark: real completions against published figures, brute force over subsets, and properties."""

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import (
    by,
    elected,
    group,
    majority,
    pass_at,
    pass_at_k,
    powers_of_two,
    same_answer,
    summarise,
    votes,
    votes_by,
)
from eval.questions import Answer
from rlhf.rewards.grading import grade
from rlhf.training.statistics import wilson_interval

DATA = Path(os.environ.get("RLHF_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def answer(name: str, sample: int, outcome: str = "right", extracted: str | None = "5", **rest: Any) -> Answer:
    fields = {"tokens": 10, "finish_reason": "stop", "benchmark": "sums"} | rest
    return Answer(
        id=name, sample=sample, seed=0, prompt="2 + 3?", completion="", gold="5", outcome=outcome, extracted=extracted,
        reason="", **fields,
    )  # fmt: skip


@pytest.fixture(scope="module")
def real() -> list[Answer]:
    """50 MATH items x 8 completions of Qwen2.5-Math, with stored verdicts and reward-model scores."""
    path = DATA / "real_completions.jsonl"
    if not path.is_file():
        pytest.skip(f"there is no {path}: set RLHF_TEST_DATA to the folder of the real completions")
    answers = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        columns = zip(row["completions"], row["verdicts"], row["reward_model_scores"], strict=True)
        for sample, (completion, is_right, score) in enumerate(columns):
            found = grade(completion, row["gold"]).extracted
            answers.append(
                answer(row["id"], sample, "right" if is_right else "wrong", found, score=score, tokens=len(completion))
            )
    return answers


def test_real_completions(real: list[Answer]) -> None:
    summary = summarise(real, 8)
    published = [0.880000, 0.915714, 0.937857, 0.952286, 0.962143, 0.969286, 0.975000, 0.980000]
    assert summary.estimates["avg@8"].value == pytest.approx(0.88, abs=1e-12)
    assert [summary.estimates[f"pass@{k}"].value for k in range(1, 9)] == pytest.approx(published, abs=1e-6)
    right = numpy.array([a.outcome == "right" for a in real], dtype=float).reshape(50, 8)
    error = right.mean(axis=1).std(ddof=1) / math.sqrt(50)
    average = summary.estimates["avg@8"]
    assert average.standard_error == pytest.approx(error, rel=1e-12)
    # t(49) = 2.009575
    assert (average.low, average.high) == pytest.approx((0.88 - 2.009575 * error, 0.88 + 2.009575 * error), abs=1e-6)
    # naive: 400 independent answers
    assert average.standard_error > 2 * math.sqrt(0.88 * 0.12 / 400)
    last = summary.estimates["pass@8"]
    assert (last.low, last.high) == wilson_interval(49, 50)
    scores = numpy.array([a.score for a in real]).reshape(50, 8)
    for k in (1, 2, 4, 8):
        picked = right[numpy.arange(50), scores[:, :k].argmax(axis=1)].mean()
        assert summary.estimates[f"best-of-{k}"].value == pytest.approx(picked, abs=1e-12)
    assert summary.counts["questions"] == 50
    assert summary.counts["samples"] == 400
    assert summary.counts["right"] == 352
    assert summary.estimates["mean tokens"].value == pytest.approx(numpy.mean([a.tokens for a in real]), rel=1e-12)


def test_majority_of_real_completions_by_brute_force(real: list[Answer]) -> None:
    """Votes counted from all pairs of answers, without representatives."""
    summary = summarise(real, 8)
    groups = group(real)
    for k in (1, 2, 4, 8):
        right = 0
        for samples in groups.values():
            first = [a for a in samples[:k] if a.extracted is not None]
            support = [sum(same_answer(a.extracted, b.extracted) for b in first) for a in first]
            right += bool(first) and first[support.index(max(support))].outcome == "right"
        assert summary.estimates[f"maj@{k}"].value == pytest.approx(right / 50, abs=1e-12)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations(range(n), k))
        assert pass_at_k(n, c, k) == sum(min(s) < c for s in subsets) / len(subsets)


def test_pass_at_k_of_many_samples() -> None:
    # c = 1: k/n; k = 1: c/n; and a value whose binomials overflow a float
    assert pass_at_k(10_000, 1, 5_000) == 0.5
    assert pass_at_k(10_000, 7, 1) == 0.0007
    assert pass_at_k(4_000, 2, 2_000) == pytest.approx(1 - (2_000 * 1_999) / (4_000 * 3_999), rel=1e-15)
    assert pass_at_k(8, 5, 4) == 1.0
    for wrong in ((4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)):
        with pytest.raises(ValueError, match="pass@k needs"):
            pass_at_k(*wrong)


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_pass_at_k_is_monotone_and_a_share(case: tuple[int, int]) -> None:
    n, c = case
    values = [pass_at_k(n, c, k) for k in range(1, n + 1)]
    assert values == sorted(values)
    assert values[0] == c / n
    assert values[-1] == (c > 0)
    assert all(0 <= v <= 1 for v in values)


ANSWERS = st.sampled_from([("right", "5"), ("right", "5.0"), ("wrong", "6"), ("wrong", "7"), ("wrong", None)])
TABLES = st.integers(1, 8).flatmap(
    lambda k: st.lists(st.lists(ANSWERS, min_size=k, max_size=k), min_size=1, max_size=6)
)


@given(TABLES)
def test_properties_of_a_summary(table: list[list[tuple[str, str | None]]]) -> None:
    answers = [answer(f"q{i}", j, *cell) for i, row in enumerate(table) for j, cell in enumerate(row)]
    k = len(table[0])
    groups = group(answers)
    maj = majority(groups, same_answer)
    assert list(maj) == powers_of_two(k)
    assert maj[1].value == pytest.approx(sum(row[0][0] == "right" for row in table) / len(table), abs=1e-12)
    passes = [pass_at(groups, i).value for i in range(1, k + 1)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(passes))
    assert all(maj[i].value <= passes[-1] + 1e-12 for i in maj)
    summary = summarise(answers, k)
    assert all(e.low <= e.value <= e.high and e.low < e.high for e in summary.estimates.values())
    c = summary.counts
    assert c["right"] + c["wrong"] + c["ungradable"] == c["samples"] == k * len(table)
    # sums do not depend on the order of the lines
    assert summary == summarise(answers[::-1], k)


def vote(*answers: tuple[str, str | None]) -> list[int | None]:
    return votes([answer("q", i, outcome, text) for i, (outcome, text) in enumerate(answers)], same_answer)


def test_votes_go_to_values_not_to_strings() -> None:
    assert vote(("wrong", r"\frac{1}{2}"), ("wrong", "2"), ("wrong", "0.5"), ("wrong", "1/2")) == [0, 1, 0, 0]


def test_ties_go_to_the_group_that_came_first() -> None:
    assert elected([0, 1, 1, 0]) == 0
    assert elected([0, 1, 1]) == 1
    assert elected([None, 1, 2, None]) == 1
    assert elected([None, None]) is None
    assert elected([]) is None


def test_who_votes() -> None:
    # no answer: no vote; ungradable: by its text alone, though the grader would call 0.5 and 1/2 equal
    assert vote(("wrong", None), ("ungradable", "1/2"), ("wrong", "0.5"), ("ungradable", "1/2")) == [None, 1, 2, 1]
    assert vote(("wrong", "0.5"), ("ungradable", "1/2")) == [0, 1]
    silent = [answer("q", i, "wrong", None) for i in range(4)]
    assert summarise(silent, 4).estimates["maj@4"].value == 0


def test_votes_ask_once_a_group() -> None:
    calls = []

    def same(a: str, b: str) -> bool:
        calls.append((a, b))
        return a[0] == b[0]

    texts = ["a1", "b1", "a1", "a2", "c1", "b1"]
    assert votes([answer("q", i, "wrong", text) for i, text in enumerate(texts)], same) == [0, 1, 0, 0, 4, 1]
    assert calls == [("b1", "a1"), ("a2", "a1"), ("c1", "a1"), ("c1", "b1")]


def test_same_answer_has_no_direction() -> None:
    pairs = [("x=5", "5"), ("(1, 2)", "(1,2)"), ("50\\%", "50"), ("3 \\text{ cm}", "3"), ("1/2", "0.5"), ("6", "5")]
    for a, b in pairs:
        assert same_answer(a, b) == same_answer(b, a)
    # a unit may be dropped from an answer, but a gold answer may need it: the grader says yes in one direction only
    assert same_answer("5", "5 m")
    assert same_answer("5 m", "5")
    assert same_answer("1/2", "0.5")
    assert not same_answer("6", "5")


def test_majority_uses_the_first_samples_only() -> None:
    cells = [("wrong", "6"), ("right", "5"), ("right", "5"), ("wrong", "7")]
    maj = majority(group([answer("q", i, *cell) for i, cell in enumerate(cells)]), same_answer)
    assert {k: e.value for k, e in maj.items()} == {1: 0.0, 2: 0.0, 4: 1.0}


def test_rates_and_counts() -> None:
    answers = [
        answer("a", 0, "right", "5", tokens=10),
        answer("a", 1, "ungradable", None, tokens=30, timed_out=True),
        answer("b", 0, "wrong", None, tokens=40, finish_reason="length"),
        answer("b", 1, "ungradable", "9^9^9", tokens=20),
    ]
    summary = summarise(answers, 2)
    values = {name: estimate.value for name, estimate in summary.estimates.items()}
    assert list(values) == [
        "avg@2", "pass@1", "pass@2", "maj@1", "maj@2", "mean tokens", "truncated", "no answer", "ungradable",
        "timed out",
    ]  # fmt: skip
    # ungradable answers are in the denominator, not right, and counted beside
    assert values["avg@2"] == 0.25
    assert values["mean tokens"] == 25
    assert (values["truncated"], values["no answer"], values["ungradable"], values["timed out"]) == (
        0.25,
        0.25,
        0.5,
        0.25,
    )
    assert summary.counts == {
        "questions": 2, "samples": 4, "right": 1, "wrong": 1, "truncated": 1, "no answer": 1, "ungradable": 2,
        "timed out": 1, "tokens": 100,
    }  # fmt: skip


def test_one_sample_a_question_is_called_accuracy() -> None:
    summary = summarise([answer(f"q{i}", 0, "right" if i < 20 else "wrong") for i in range(30)], 1)
    estimate = summary.estimates["accuracy"]
    assert (estimate.low, estimate.high) == wilson_interval(20, 30)
    assert not any("@" in name for name in summary.estimates)


def test_best_of_takes_the_first_of_equal_scores_and_wants_all_scores() -> None:
    scored = [
        answer("q", 0, "wrong", score=1.0),
        answer("q", 1, "right", score=1.0),
        answer("q", 2, "right", score=0.5),
    ]
    values = summarise(scored, 3).estimates
    assert (values["best-of-1"].value, values["best-of-2"].value) == (0, 0)
    for score in (None, math.nan):
        with pytest.raises(ValueError, match="sample 1 of question 'q'"):
            summarise([answer("q", 0, score=1.0), answer("q", 1, score=score)], 2)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "no answers"),
        ([answer("a", 0), answer("a", 0)], "question 'a' has sample 0 twice"),
        (
            [answer("a", 0), answer("a", 1), answer("b", 0), answer("c", 0), answer("c", 1)],
            "question 'b' has 1 samples",
        ),
        ([answer("a", 0), answer("b", 1)], "question 'b' has samples .1. where others have .0."),
        ([answer("a", 0), answer("b", 0, benchmark="other")], "of one benchmark, got answers of other, sums"),
    ],
)
def test_refusals(answers: list[Answer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarise(answers, 1)


def test_wrong_number_of_samples() -> None:
    with pytest.raises(ValueError, match="has 1 samples where 4 are expected"):
        summarise([answer("a", 0)], 4)


def test_by_level_and_subject() -> None:
    levels = ["2", "10", "2", None]
    answers = [
        answer(f"q{i}", j, "right" if i + j < 2 else "wrong", level=x) for i, x in enumerate(levels) for j in (0, 1)
    ]
    table = by(answers, "level")
    assert list(table) == ["2", "10", "(none)"]
    assert [e.value for e in table.values()] == [0.5, 0.5, 0.0]
    assert by(answers, "subject") == {}
    with pytest.raises(ValueError, match="question 'q' has more than one subject"):
        by([answer("q", 0, subject="algebra"), answer("q", 1, subject="geometry")], "subject")


def test_expressions_and_letters_vote_by_their_text():
    # of two expressions with the value of the target one uses a number that was not given
    samples = [
        answer("q", 0, "wrong", extracted="20 + 4"), answer("q", 1, "right", extracted="12 * 2"),
        answer("q", 2, "right", extracted="12 * 2"),
    ]  # fmt: skip
    groups = group(samples)
    assert majority(groups, votes_by("countdown"))[2].value == 0
    assert [elected(votes(samples, votes_by(name))) for name in ("countdown", "math")] == [1, 0]

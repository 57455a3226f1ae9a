"""Paired comparisons: closed forms of the tests, what is refused, and files that were cut off."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.compare import compare, exact_mcnemar, read_answers, render
from eval.intervals import paired_proportions_interval, student_t_p_value
from eval.questions import Answer
from rlhf.training.statistics import wilson_interval


def answer(name: str, sample: int, outcome: str = "right", **rest: Any) -> Answer:
    fields = {"benchmark": "sums", "gold": "5", "extracted": "5"} | rest
    return Answer(
        id=name, sample=sample, seed=0, prompt="2 + 3?", completion="5", tokens=10, finish_reason="stop",
        outcome=outcome, reason="", **fields,
    )  # fmt: skip


def evaluation(rights: Sequence[int], samples: int = 1) -> list[Answer]:
    """Question i has `rights[i]` right samples."""
    return [
        answer(f"q{i}", j, "right" if j < right else "wrong") for i, right in enumerate(rights) for j in range(samples)
    ]


@pytest.mark.parametrize("m", range(1, 12))
def test_mcnemar_closed_forms(m: int) -> None:
    assert exact_mcnemar(m, 0) == exact_mcnemar(0, m) == min(1.0, 2.0 ** (1 - m))
    assert exact_mcnemar(m, m) == 1.0
    # one against m: 2 (1 + (m + 1)) / 2^(m + 1)
    assert exact_mcnemar(1, m) == min(1.0, (m + 2) * 2.0**-m)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_binomial_tail(gained: int, lost: int) -> None:
    n = gained + lost
    # outcomes of a fair coin at least as far from n/2 as the one seen
    extreme = sum(math.comb(n, i) for i in range(n + 1) if abs(2 * i - n) >= abs(gained - lost))
    assert exact_mcnemar(gained, lost) == pytest.approx(float(Fraction(extreme, 2**n)), rel=1e-14)


def test_mcnemar_edges() -> None:
    assert exact_mcnemar(0, 0) == 1.0
    # terms of 2^-3000 would be zero as floats
    assert 0 < exact_mcnemar(1400, 1600) < 1e-3
    with pytest.raises(ValueError, match="-1 gained"):
        exact_mcnemar(-1, 2)


def test_single_samples_use_mcnemar_and_newcombe() -> None:
    before = evaluation([1] * 36 + [0] * 12 + [1] * 2)
    after = evaluation([1] * 36 + [1] * 12 + [0] * 2)
    result = compare(before, after)
    assert (result.questions, result.samples_a, result.samples_b) == (50, 1, 1)
    assert result.difference.value == pytest.approx(0.2)
    assert (result.difference.low, result.difference.high) == paired_proportions_interval(36, 12, 2, 0)
    # the published limits of these counts (see test_intervals.py)
    assert (round(result.difference.low, 4), round(result.difference.high, 4)) == (0.0569, 0.3404)
    assert result.p_value == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert result.test == "exact McNemar"
    assert [flip.id for flip in result.gained] == [f"q{i}" for i in range(36, 48)]
    assert [flip.id for flip in result.lost] == ["q48", "q49"]
    assert (result.accuracy_a.low, result.accuracy_a.high) == wilson_interval(38, 50)
    assert compare(after, before).difference.value == -result.difference.value


def test_many_samples_use_the_paired_t() -> None:
    a, b = [4, 2, 8, 0, 5], [6, 2, 7, 3, 8]
    result = compare(evaluation(a, 8), evaluation(b, 8))
    changes = (numpy.array(b) - numpy.array(a)) / 8
    error = changes.std(ddof=1) / math.sqrt(5)
    # t(4) = 2.776445
    half = 2.776445 * error
    assert result.difference.value == pytest.approx(changes.mean(), rel=1e-12)
    assert result.difference.standard_error == pytest.approx(error, rel=1e-12)
    assert result.difference.low == pytest.approx(changes.mean() - half, abs=1e-6)
    assert result.difference.high == pytest.approx(changes.mean() + half, abs=1e-6)
    assert result.p_value == pytest.approx(student_t_p_value(changes.mean() / error, 4), rel=1e-12)
    assert result.test == result.interval == "paired t"
    # 4/8 is not below a half: q0 did not turn over; q3 stays below
    assert result.gained == result.lost == ()


def test_sides_may_have_different_numbers_of_samples() -> None:
    result = compare(evaluation([1, 0, 1, 0]), evaluation([4, 3, 1, 0], 4))
    assert (result.samples_a, result.samples_b) == (1, 4)
    assert result.difference.value == pytest.approx((0 + 0.75 - 0.75 + 0) / 4)
    assert ([f.id for f in result.gained], [f.id for f in result.lost]) == (["q1"], ["q2"])
    assert (result.gained[0].before, result.gained[0].after) == (0.0, 0.75)


def test_equal_changes_are_not_a_tiny_spread() -> None:
    # 3/10 - 1/10 and 4/10 - 2/10 differ as floats; as a spread they would give p = 0
    result = compare(evaluation([1, 2], 10), evaluation([3, 4], 10))
    assert result.test == "exact sign test"
    assert result.p_value == 0.5
    assert result.difference.value == 0.2
    assert -1 <= result.difference.low < 0.2 < result.difference.high <= 1


def test_an_evaluation_equals_itself() -> None:
    for samples in (1, 8):
        same = evaluation([samples, 0, samples // 2, samples], samples)
        result = compare(same, same)
        assert (result.difference.value, result.p_value) == (0, 1)
        assert result.difference.low < 0 < result.difference.high


def test_pairing_sees_what_two_intervals_hide() -> None:
    """1,000 questions, 20 gained and 4 lost: the intervals of the two accuracies overlap, the paired test is sure."""
    result = compare(evaluation([1] * 504 + [0] * 496), evaluation([1] * 500 + [0] * 4 + [1] * 20 + [0] * 476))
    assert result.accuracy_a.high > result.accuracy_b.low
    assert result.p_value < 0.002
    assert result.difference.low > 0


def test_false_alarms_are_one_in_twenty() -> None:
    """Two evaluations of one model, 300 times: p < 0.05 in about 5 % with the t test, and fewer with the exact test."""
    generator = numpy.random.default_rng(7)
    for samples, low, high in ((4, 0.02, 0.085), (1, 0.0, 0.06)):
        alarms = 0
        for _ in range(300):
            chances = generator.beta(0.8, 0.8, 40)
            a, b = (generator.binomial(samples, chances).tolist() for _ in range(2))
            alarms += compare(evaluation(a, samples), evaluation(b, samples)).p_value < 0.05
        assert low <= alarms / 300 <= high


def test_different_questions_are_refused_by_name_or_left_out() -> None:
    a, b = evaluation([1, 0, 1]), [*evaluation([1, 1]), answer("new", 0)]
    with pytest.raises(ValueError, match=r"1 only in the first \(q2\), 1 only in the second \(new\)"):
        compare(a, b)
    result = compare(a, b, allow_subset=True)
    assert (result.questions, result.only_in_a, result.only_in_b) == (2, ("q2",), ("new",))
    assert "left out: 1 questions only in before, 1 only in after" in render(result)
    with pytest.raises(ValueError, match="no question in common"):
        compare(a, [answer("new", 0)], allow_subset=True)
    many = evaluation([1] * 30)
    with pytest.raises(ValueError, match=r"29 only in the first .*q10 and 19 more"):
        compare(many, many[:1])


def test_other_data_are_refused() -> None:
    with pytest.raises(ValueError, match="question 'q' has the gold answer '5' in the first evaluation and '6'"):
        compare([answer("q", 0)], [answer("q", 0, gold="6")])
    with pytest.raises(ValueError, match="'sums' cannot be compared with 'other'"):
        compare([answer("q", 0)], [answer("q", 0, benchmark="other")])


def test_render() -> None:
    before = [answer("a", 0, "wrong"), answer("b", 0), answer("c", 0, "ungradable")]
    after = [answer("a", 0), answer("b", 0, "wrong"), answer("c", 0)]
    lines = render(compare(before, after), "base", "tuned|v2").splitlines()
    assert lines[0] == "sums: 3 questions, paired"
    table = lines[2:7]
    assert len({len(line) for line in table}) == 1
    assert table[2].startswith("| base") and "33.3 %" in table[2] and "1 of 3" in table[2]
    assert table[3].startswith(r"| tuned\|v2") and "66.7 %" in table[3]
    assert "+33.3 %" in table[4]
    assert "p = 1 (exact McNemar" in lines[8]
    assert lines[10:] == ["gained: 2", "- a: 0 -> 1", "- c: 0 -> 1, 1 ungradable", "", "lost: 1", "- b: 1 -> 0"]


@pytest.fixture
def samples_file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "samples.jsonl"
        path.write_bytes(content)
        return path

    return write


def line(**changes: Any) -> bytes:
    row = asdict(answer("q", 0)) | changes
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def test_read_answers_gives_back_what_was_written(samples_file: Callable[[bytes], Path]) -> None:
    # a line separator of Unicode is not an end of line
    lines = [line(completion="one\u2028two\n"), line(id="r", score=2, level="3"), line(benchmark="other", score=0.5)]
    read = read_answers(samples_file(b"".join(lines)))
    assert list(read) == ["sums", "other"]
    assert read["sums"][0].completion == "one\u2028two\n"
    assert [asdict(a) for a in read["sums"] + read["other"]] == [json.loads(text) for text in lines]
    # complete, but without the last line break: nothing is lost
    assert read_answers(samples_file(lines[0].rstrip(b"\n")))["sums"] == read["sums"][:1]


def test_every_torn_last_line_is_said_to_be_torn(samples_file: Callable[[bytes], Path]) -> None:
    whole, last = line(), line(id="r", completion="π")
    for cut in range(1, len(last) - 1):
        with pytest.raises(ValueError, match=r"samples\.jsonl, line 2: the last line is torn"):
            read_answers(samples_file(whole + last[:cut]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no answer in this file"),
        (b"{oops}\n" + line(), "line 1: not JSON"),
        (line() + b"\n" + line(), "line 2: not JSON"),
        (b"\xff\xfe\n", "line 1: not JSON"),
        (b"[1]\n", "line 1: an answer is a JSON object, got list"),
        (b'{"id": "q", "colour": 1}\n', "line 1: missing fields: benchmark, .*; unknown fields: colour"),
        (line() + line(sample="1"), "line 2: sample is '1', not int"),
        (line(tokens=True), "tokens is True, not int"),
        (line(timed_out=1), "timed_out is 1, not bool"),
        (line(outcome="correct"), "outcome is 'correct', not one of right, wrong, ungradable"),
        (line(finish_reason="eos"), "finish_reason is 'eos', not one of stop, length"),
    ],
)
def test_read_refusals(samples_file: Callable[[bytes], Path], content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_answers(samples_file(content))


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_answers(tmp_path / "none.jsonl")

"""Did a model get better? Two evaluations of the same questions, paired by question.

Pairing takes the difficulty of the questions out of the noise (Miller 2024, arXiv 2411.00640): what is
tested is the change on each question, not two accuracies side by side.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from eval.intervals import (
    Estimate,
    over_changes,
    paired_proportions_interval,
    standard_error,
    student_t_p_value,
)
from eval.metrics import accuracy, group
from eval.questions import Answer

SHOWN_IDS = 10
"""Longest list of ids in an error."""


@dataclass(frozen=True, slots=True)
class Flip:
    """A question whose result turned over: the shares of right samples, and how many samples could not be judged."""

    id: str
    before: float
    after: float
    ungradable: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The change from evaluation a to evaluation b on `questions` common questions of one benchmark.

    `difference` is b - a of the mean share of right samples; `interval` and `test` name how its interval and `p_value`
    (two-sided) were made. `gained` are the questions right in less than half of a's samples and in more than half of
    b's, `lost` the reverse. `only_in_a` and `only_in_b` are the ids that were left out.
    """

    benchmark: str
    questions: int
    samples_a: int
    samples_b: int
    accuracy_a: Estimate
    accuracy_b: Estimate
    ungradable_a: int
    ungradable_b: int
    difference: Estimate
    interval: str
    p_value: float
    test: str
    gained: tuple[Flip, ...]
    lost: tuple[Flip, ...]
    only_in_a: tuple[str, ...] = ()
    only_in_b: tuple[str, ...] = ()


def compare(answers_a: Sequence[Answer], answers_b: Sequence[Answer], allow_subset: bool = False) -> Comparison:
    """Pair two evaluations of one benchmark by question id and test the change from a to b.

    With one sample a question on both sides: exact McNemar test, and Newcombe's interval of paired proportions. Else
    the t test and interval of the per-question changes, clustered by question, where each side may have any number of
    samples. Where all changes are alike there is no spread for a t test: the exact sign test stands in.

    Raises ValueError where the benchmarks, the questions (unless `allow_subset`: then the common ones are compared) or
    the gold answer of a question differ, and like `eval.metrics.group`.
    """
    groups_a, groups_b = group(answers_a), group(answers_b)
    benchmark = answers_a[0].benchmark
    if answers_b[0].benchmark != benchmark:
        raise ValueError(f"benchmark {benchmark!r} cannot be compared with {answers_b[0].benchmark!r}")
    only_in_a = tuple(name for name in groups_a if name not in groups_b)
    only_in_b = tuple(name for name in groups_b if name not in groups_a)
    common = [name for name in groups_a if name in groups_b]
    if not common:
        raise ValueError(f"the two evaluations of {benchmark!r} have no question in common")
    if (only_in_a or only_in_b) and not allow_subset:
        raise ValueError(
            f"the two evaluations of {benchmark!r} are of different questions: {len(only_in_a)} only in the first "
            f"({_listed(only_in_a)}), {len(only_in_b)} only in the second ({_listed(only_in_b)}); allow a subset to "
            f"compare the {len(common)} common ones"
        )
    for name in common:
        gold_a, gold_b = groups_a[name][0].gold, groups_b[name][0].gold
        if gold_a != gold_b:
            raise ValueError(
                f"question {name!r} has the gold answer {gold_a!r} in the first evaluation and {gold_b!r} in the "
                "second: the data of the benchmark differ"
            )
    groups_a, groups_b = {name: groups_a[name] for name in common}, {name: groups_b[name] for name in common}
    rights = {name: (_right(groups_a[name]), _right(groups_b[name])) for name in common}
    samples_a, samples_b = len(groups_a[common[0]]), len(groups_b[common[0]])
    difference, interval, p_value, test = _tested(list(rights.values()), samples_a, samples_b)
    unjudged = {name: _ungradable(groups_a[name]) + _ungradable(groups_b[name]) for name in common}
    flips = [Flip(name, a / samples_a, b / samples_b, unjudged[name]) for name, (a, b) in rights.items()]
    return Comparison(
        benchmark=benchmark,
        questions=len(common),
        samples_a=samples_a,
        samples_b=samples_b,
        accuracy_a=accuracy(groups_a),
        accuracy_b=accuracy(groups_b),
        ungradable_a=sum(map(_ungradable, groups_a.values())),
        ungradable_b=sum(map(_ungradable, groups_b.values())),
        difference=difference,
        interval=interval,
        p_value=p_value,
        test=test,
        gained=tuple(flip for flip in flips if flip.before < 0.5 < flip.after),
        lost=tuple(flip for flip in flips if flip.after < 0.5 < flip.before),
        only_in_a=only_in_a,
        only_in_b=only_in_b,
    )


def _tested(rights: Sequence[tuple[int, int]], samples_a: int, samples_b: int) -> tuple[Estimate, str, float, str]:
    """The difference, the name of its interval, the p-value, the name of its test; `rights` are right samples."""
    # one division of integers: equal changes are equal numbers, and do not look like a tiny spread
    changes = [(b * samples_a - a * samples_b) / (samples_a * samples_b) for a, b in rights]
    estimate = over_changes(changes)
    has_spread = min(changes) != max(changes)
    if samples_a == samples_b == 1:
        table = Counter(rights)
        both, gained, lost, neither = (table[pair] for pair in ((1, 1), (0, 1), (1, 0), (0, 0)))
        low, high = paired_proportions_interval(both, gained, lost, neither)
        estimate = Estimate(estimate.value, low, high, estimate.standard_error)
        return estimate, "Newcombe 1998, method 10", exact_mcnemar(gained, lost), "exact McNemar"
    if has_spread:
        t = estimate.value / standard_error(changes)
        return estimate, "paired t", student_t_p_value(t, len(rights) - 1), "paired t"
    up, down = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    return estimate, "Wilson, for what was not seen", exact_mcnemar(up, down), "exact sign test"


def exact_mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value that a question is as likely to be gained as lost: a fair coin over the discordant pairs.

    McNemar 1947 (Psychometrika 12:153) in its exact form: twice the smaller tail of Binomial(gained + lost, 1/2), at
    most 1. The questions that did not change play no part. Raises ValueError for a negative count.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"McNemar's test needs counts of questions, got {gained} gained and {lost} lost")
    n = gained + lost
    tail = sum(math.comb(n, i) for i in range(min(gained, lost) + 1))
    # integers until the one division: no rounding and no underflow of the terms
    return min(1.0, 2 * tail / 2**n)


def render(comparison: Comparison, name_a: str = "before", name_b: str = "after") -> str:
    """The comparison as a Markdown table and the flipped questions, readable as plain text; no final line break."""
    c = comparison
    rows = [
        ("", "accuracy", "95 % interval", "samples a question", "ungradable"),
        (name_a, *_percent(c.accuracy_a), str(c.samples_a), f"{c.ungradable_a} of {c.questions * c.samples_a}"),
        (name_b, *_percent(c.accuracy_b), str(c.samples_b), f"{c.ungradable_b} of {c.questions * c.samples_b}"),
        ("difference", *_percent(c.difference, signed=True), "", ""),
    ]
    lines = [f"{c.benchmark}: {c.questions} questions, paired", "", *_table(rows), ""]
    lines.append(f"p = {c.p_value:.3g} ({c.test}, two-sided; interval of the difference: {c.interval})")
    if c.only_in_a or c.only_in_b:
        lines.append(f"left out: {len(c.only_in_a)} questions only in {name_a}, {len(c.only_in_b)} only in {name_b}")
    for title, flips in (("gained", c.gained), ("lost", c.lost)):
        lines += ["", f"{title}: {len(flips)}"]
        for flip in flips:
            unjudged = f", {flip.ungradable} ungradable" if flip.ungradable else ""
            lines.append(f"- {flip.id}: {flip.before:.3g} -> {flip.after:.3g}{unjudged}")
    return "\n".join(lines)


def _percent(estimate: Estimate, signed: bool = False) -> tuple[str, str]:
    style = "+.1f" if signed else ".1f"
    value, low, high = (format(100 * x, style) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} %", f"[{low}, {high}]"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*escaped, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in escaped]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN_IDS
    return ", ".join(names[:SHOWN_IDS]) + (f" and {rest} more" if rest > 0 else "") if names else "none"


def _right(samples: Sequence[Answer]) -> int:
    return sum(a.outcome == "right" for a in samples)


def _ungradable(samples: Sequence[Answer]) -> int:
    return sum(a.outcome == "ungradable" for a in samples)


_KINDS: dict[str, tuple[type, ...]] = {
    "benchmark": (str,), "id": (str,), "sample": (int,), "seed": (int,), "prompt": (str,), "completion": (str,),
    "tokens": (int,), "finish_reason": (str,), "gold": (str,), "outcome": (str,), "extracted": (str, type(None)),
    "reason": (str,), "timed_out": (bool,), "level": (str, type(None)), "subject": (str, type(None)),
    "score": (float, int, type(None)),
}  # fmt: skip
_CHOICES = {"finish_reason": ("stop", "length"), "outcome": ("right", "wrong", "ungradable")}
_REQUIRED = frozenset(field.name for field in fields(Answer) if field.default is MISSING)


def read_answers(path: Path) -> dict[str, list[Answer]]:
    """The answers in a samples.jsonl by benchmark, in the order of the file: one JSON object a line, `Answer`'s fields.

    Raises OSError for a file that cannot be read; ValueError, naming file and line, for a line that is not such an
    object, for a last line that was cut off while it was written, and for a file without a line.
    """
    # not splitlines(): a completion may hold line breaks of Unicode that JSON does not escape
    lines = Path(path).read_bytes().split(b"\n")
    is_torn = lines[-1] != b""
    if not is_torn:
        lines.pop()
    answers: dict[str, list[Answer]] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            if is_torn and number == len(lines):
                raise ValueError(
                    f"{where}: the last line is torn (the writer was stopped in the middle of it): resume the "
                    "evaluation, or delete this line"
                ) from error
            raise ValueError(f"{where}: not JSON ({error})") from error
        answer = _answer(row, where)
        answers.setdefault(answer.benchmark, []).append(answer)
    if not answers:
        raise ValueError(f"{path}: there is no answer in this file")
    return answers


def _answer(row: Any, where: str) -> Answer:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: an answer is a JSON object, got {type(row).__name__}")
    missing, unknown = sorted(_REQUIRED - row.keys()), sorted(row.keys() - _KINDS.keys())
    if missing or unknown:
        raise ValueError(f"{where}: missing fields: {_listed(missing)}; unknown fields: {_listed(unknown)}")
    for name, value in row.items():
        # bool is an int to Python, not to us
        if not isinstance(value, _KINDS[name]) or (isinstance(value, bool) and bool not in _KINDS[name]):
            wanted = " or ".join(kind.__name__ for kind in _KINDS[name])
            raise ValueError(f"{where}: {name} is {value!r}, not {wanted}")
        if value not in _CHOICES.get(name, (value,)):
            raise ValueError(f"{where}: {name} is {value!r}, not one of {', '.join(_CHOICES[name])}")
    return Answer(**row)

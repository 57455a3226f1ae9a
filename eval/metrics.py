"""Figures of one benchmark from its answers: avg@k, pass@k, maj@k, best-of-k, lengths and rates, each with an interval.

What could not be judged is never called wrong in silence: an ungradable answer counts in the denominator of the
accuracy as not right, and the share of ungradable answers stands beside it.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from eval.intervals import Estimate, over_questions
from eval.questions import Answer
from rlhf.rewards.grading import compare

Same = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one benchmark, in the order of a table, and the counts behind them.

    `estimates` holds `accuracy` (one sample a question) or `avg@K`, `pass@k` for k = 1..K and `maj@k` (K samples); then
    `best-of-k` where the answers have scores; then `mean tokens`, and the shares of all samples that were `truncated`,
    had `no answer`, were `ungradable`, or `timed out`. `counts` holds `questions`, `samples` and, of the samples,
    `right`, `wrong`, `ungradable`, `no answer`, `truncated`, `timed out`, `tokens`.
    """

    benchmark: str
    samples_per_question: int
    estimates: dict[str, Estimate]
    counts: dict[str, int]


def summarise(answers: Sequence[Answer], samples_per_question: int, same: Same | None = None) -> Summary:
    """All figures of one benchmark. `same` says whether two extracted answers agree (default: `same_answer`).

    Raises ValueError like `group`, where the questions do not have `samples_per_question` samples, and where only some
    of the answers have a score.
    """
    groups = group(answers)
    k = len(next(iter(groups.values())))
    if k != samples_per_question:
        raise ValueError(
            f"every question has {k} samples where {samples_per_question} are expected: is the run complete?"
        )
    estimates = {"accuracy" if k == 1 else f"avg@{k}": accuracy(groups)}
    if k > 1:
        estimates |= {f"pass@{i}": pass_at(groups, i) for i in range(1, k + 1)}
        estimates |= {f"maj@{i}": estimate for i, estimate in majority(groups, same or same_answer).items()}
        if _has_scores(groups):
            estimates |= {f"best-of-{i}": best_of(groups, i) for i in powers_of_two(k)}
    # with no other limit known, the longest completion is the range of the lengths
    estimates["mean tokens"] = _share(groups, lambda a: a.tokens, upper=max(1, *(a.tokens for a in answers)))
    for name, holds in _RATES.items():
        estimates[name] = _share(groups, holds)
    outcomes = Counter(a.outcome for a in answers)
    counts = {"questions": len(groups), "samples": len(answers), "right": outcomes["right"], "wrong": outcomes["wrong"]}
    counts |= {name: sum(map(holds, answers)) for name, holds in _RATES.items()}
    return Summary(answers[0].benchmark, k, estimates, counts | {"tokens": sum(a.tokens for a in answers)})


_RATES: dict[str, Callable[[Answer], bool]] = {
    "truncated": lambda a: a.finish_reason == "length",
    # a grader that gave up has not looked for an answer: that is not the model's silence
    "no answer": lambda a: a.extracted is None and a.outcome != "ungradable",
    "ungradable": lambda a: a.outcome == "ungradable",
    "timed out": lambda a: a.timed_out,
}


def group(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Answers by question id, in order of first appearance; the samples of a question in order of `Answer.sample`.

    Raises ValueError, naming the question, for a repeated (id, sample) and for a question whose samples are not those
    of the others; and for no answers, or answers of several benchmarks.
    """
    if not answers:
        raise ValueError("there are no answers to make figures of")
    benchmarks = sorted({a.benchmark for a in answers})
    if len(benchmarks) > 1:
        raise ValueError(f"figures are of one benchmark, got answers of {', '.join(benchmarks)}: split them first")
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.id, []).append(answer)
    for samples in groups.values():
        samples.sort(key=lambda a: a.sample)
        for first, second in pairwise(samples):
            if first.sample == second.sample:
                raise ValueError(f"question {first.id!r} has sample {first.sample} twice: drop one of the two lines")
    usual = Counter(len(samples) for samples in groups.values()).most_common(1)[0][0]
    expected = next([a.sample for a in samples] for samples in groups.values() if len(samples) == usual)
    for name, samples in groups.items():
        if len(samples) != usual:
            raise ValueError(
                f"question {name!r} has {len(samples)} samples where others have {usual}: the run is not complete, or "
                "two runs are mixed"
            )
        if [a.sample for a in samples] != expected:
            raise ValueError(
                f"question {name!r} has samples {[a.sample for a in samples]} where others have {expected}"
            )
    return groups


def accuracy(groups: Mapping[str, Sequence[Answer]]) -> Estimate:
    """avg@k: the mean over questions of the share of right samples (what papers call pass@1 at k samples)."""
    return _share(groups, lambda a: a.outcome == "right")


def pass_at(groups: Mapping[str, Sequence[Answer]], k: int) -> Estimate:
    """The unbiased estimate of pass@k from all samples of each question."""
    return over_questions([pass_at_k(len(s), _right(s), k) for s in groups.values()])


@lru_cache(maxsize=65536)
def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples, c of them right, hold a right one: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), eq. 1. Counted in integers and divided once, so the result is correctly rounded
    for any n. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)


def majority(groups: Mapping[str, Sequence[Answer]], same: Same) -> dict[int, Estimate]:
    """maj@k for the powers of two k <= K: whether the answer with most votes among the first k samples is right."""
    ballots = [votes(samples, same) for samples in groups.values()]
    return {
        k: over_questions([
            float(winner is not None and samples[winner].outcome == "right")
            for samples, ballot in zip(groups.values(), ballots, strict=True)
            for winner in (elected(ballot[:k]),)
        ])
        for k in powers_of_two(len(ballots[0]))
    }  # fmt: skip


def votes(samples: Sequence[Answer], same: Same) -> list[int | None]:
    """For each sample, the position of the first sample with the same answer, or None where it does not vote.

    A sample without an extracted answer does not vote. An answer joins the first group whose first answer is the same
    text or `same` (one call a group at most); an ungradable one goes by its text alone, as the grader could not read
    it. The gold answer plays no part.
    """
    first_with: dict[str, int] = {}
    readable: list[int] = []
    ballot: list[int | None] = []
    for position, sample in enumerate(samples):
        text = sample.extracted
        if text is None:
            ballot.append(None)
            continue
        if text not in first_with:
            is_readable = sample.outcome != "ungradable"
            candidates = readable if is_readable else []
            found = next((i for i in candidates if same(text, samples[i].extracted or "")), position)
            first_with[text] = found
            if found == position and is_readable:
                readable.append(position)
        ballot.append(first_with[text])
    return ballot


def elected(ballot: Sequence[int | None]) -> int | None:
    """The group with most votes; of equal ones, the group whose first vote came first. None if nobody voted."""
    counts = Counter(vote for vote in ballot if vote is not None)
    # a group is named by its first vote, so the smaller name came first
    return min(counts, key=lambda vote: (-counts[vote], vote), default=None)


@lru_cache(maxsize=65536)
def same_answer(a: str, b: str) -> bool:
    """Whether the math grader finds two extracted answers equal, whichever of them is taken as the gold answer.

    The grader's judgement has a direction (a gold answer may be read more strictly); a vote must have none.
    """
    return compare(a, b).outcome == "right" or compare(b, a).outcome == "right"


def votes_by(scorer: str) -> Same:
    """Which extracted answers vote together, by who judges a question: equal values for the grader, the same text where
    an answer is a letter or an expression that the value does not decide (two of countdown's expressions reach the same
    target, one with numbers that were not given)."""
    return same_answer if scorer in ("math", "arithmetic") else str.__eq__


def best_of(groups: Mapping[str, Sequence[Answer]], k: int) -> Estimate:
    """Whether the sample with the highest `score` among the first k is right; the first of equal ones.

    Raises ValueError, naming the sample, where a score is missing or not a number.
    """
    picked = []
    for name, samples in groups.items():
        for sample in samples[:k]:
            if sample.score is None or math.isnan(sample.score):
                raise ValueError(
                    f"sample {sample.sample} of question {name!r} has the score {sample.score}: best-of-{k} needs a "
                    "number for every sample"
                )
        picked.append(max(samples[:k], key=lambda a: a.score))
    return over_questions([float(a.outcome == "right") for a in picked])


def by(answers: Sequence[Answer], key: Literal["level", "subject"]) -> dict[str, Estimate]:
    """Accuracy by level or subject, in natural order (2 before 10); questions without one are under `(none)`.

    Empty where no question has one. Raises ValueError like `group`, and for a question with two values.
    """
    parts: dict[str | None, dict[str, list[Answer]]] = {}
    for name, samples in group(answers).items():
        values = {getattr(a, key) for a in samples}
        if len(values) > 1:
            raise ValueError(f"question {name!r} has more than one {key}: {', '.join(sorted(map(repr, values)))}")
        parts.setdefault(values.pop(), {})[name] = samples
    if set(parts) == {None}:
        return {}
    named = sorted((part for part in parts if part is not None), key=_natural)
    tables = {part: accuracy(parts[part]) for part in named}
    return tables | ({"(none)": accuracy(parts[None])} if None in parts else {})


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... up to `limit`."""
    return [1 << i for i in range(limit.bit_length())]


def _natural(text: str) -> tuple[int, int, str]:
    return (0, int(text), text) if text.isascii() and text.isdigit() else (1, 0, text)


def _right(samples: Sequence[Answer]) -> int:
    return sum(a.outcome == "right" for a in samples)


def _share(
    groups: Mapping[str, Sequence[Answer]], statistic: Callable[[Answer], float], upper: float = 1.0
) -> Estimate:
    return over_questions([sum(map(statistic, samples)) / len(samples) for samples in groups.values()], upper)


def _has_scores(groups: Mapping[str, Sequence[Answer]]) -> bool:
    return any(a.score is not None for samples in groups.values() for a in samples)

"""What a careful reader asks before believing an evaluation, answered from its own figures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.intervals import Estimate
from eval.metrics import accuracy, group
from eval.questions import Answer
from rlhf.training.report.page import Check
from rlhf.training.statistics import format_share

Record = Mapping[str, Any]

MOST_TRUNCATED = 0.05
MOST_WITHOUT_ANSWER = 0.05
MOST_UNGRADABLE = 0.01
WIDEST_INTERVAL = 0.10
"""Shares above which a reader is told to look; the interval's is its whole width."""
ROUNDING = 1e-9


def checks(summary: Record, answers: Mapping[str, Sequence[Answer]]) -> list[Check]:
    """Checks of the whole evaluation and of each benchmark in summary.json; failed ones first.

    `answers` are samples.jsonl's by benchmark. Raises ValueError like `eval.metrics.group`.
    """
    found = list(_of_the_run(summary))
    several = len(summary["benchmarks"]) > 1
    for name, record in summary["benchmarks"].items():
        for check in _of_a_benchmark(name, record, summary, answers[name]):
            found.append(Check(check.passed, f"{name}: {check.text}") if several else check)
    return sorted(found, key=lambda check: check.passed)


def _of_the_run(summary: Record) -> Iterator[Check]:
    settings, git = summary["settings"], summary["environment"].get("git")
    if summary["model_hash"] is None:
        revision = settings.get("revision")
        said = f"at revision {revision}" if revision else "without a revision, so they may change (--revision)"
        yield Check(bool(revision), f"the weights are {settings['model']} on the hub, {said}")
    else:
        yield Check(True, "the weights are named by a hash of their files")
    if git and git["dirty"]:
        yield Check(False, f"the code had changes that commit {git['commit'][:12]} does not have")


def _of_a_benchmark(name: str, record: Record, summary: Record, answers: Sequence[Answer]) -> Iterator[Check]:
    counts, settings = record["counts"], summary["settings"]
    figure, estimate = next(iter(record["estimates"].items()))
    yield _recount(counts, figure, Estimate(**estimate), answers)
    yield _interval(counts["questions"], figure, Estimate(**estimate))
    yield from _questions(name, record.get("set", {}), counts["questions"], summary)
    yield _truncated(answers, settings["max_tokens"])
    yield _without_answer(answers, settings["template"])
    share = counts["ungradable"] / counts["samples"]
    text = f"ungradable (not counted as right, and not called wrong): {_of(counts['ungradable'], counts['samples'])}"
    yield Check(share <= MOST_UNGRADABLE, text)
    text = f"grader time-outs (a part of the ungradable): {counts['timed out']:,}"
    if counts["timed out"]:
        text += f"; the limit is {settings['grader_timeout_s']:g} s (--grader-timeout-s)"
    yield Check(counts["timed out"] == 0, text)


def _recount(counts: Record, figure: str, estimate: Estimate, answers: Sequence[Answer]) -> Check:
    groups = group(answers)
    right = sum(a.outcome == "right" for a in answers)
    there = (len(groups), len(answers), right)
    if there == (counts["questions"], counts["samples"], counts["right"]):
        if abs(accuracy(groups).value - estimate.value) <= ROUNDING:
            return Check(True, f"counted again from samples.jsonl: {_of(right, len(answers))} right, the same {figure}")
    return Check(
        False,
        f"summary.json and samples.jsonl are not of one run: {counts['right']:,} of {counts['samples']:,} right in the "
        f"one, {right:,} of {len(answers):,} in the other",
    )


def _interval(questions: int, figure: str, estimate: Estimate) -> Check:
    width = 100 * (estimate.high - estimate.low)
    text = f"the 95 % interval of {figure} is {width:.1f} points wide, from {questions:,} questions"
    if width <= 100 * WIDEST_INTERVAL:
        return Check(True, text)
    # the interval of a difference of two independent figures is wider by the square root of 2
    smallest = math.sqrt(2) * width / 2
    return Check(
        False,
        f"{text}: two such evaluations show differences from about {smallest:.0f} points on (eval compare pairs the "
        "questions and shows smaller ones)",
    )


def _questions(name: str, about: Record, questions: int, summary: Record) -> Iterator[Check]:
    """Whether it is the whole set, and whether the model can have seen it."""
    kind, limit = about.get("kind"), summary["settings"]["limit"]
    if kind == "dataset" and limit is not None:
        text = f"only the first {questions:,} questions were asked (--limit {limit}): no figure of the whole set"
        yield Check(False, text)
    if kind == "generated":
        yield Check(True, "the questions are generated, and no run of this project trains on them")
    elif about.get("hub"):
        beside = [n for n, r in summary["benchmarks"].items() if r.get("set", {}).get("kind") == "generated"]
        advice = f"compare with {', '.join(beside)}" if beside else "ask a generated set beside it, e.g. word_problems"
        caution = f" {about['caution']}" if about["caution"] else ""
        yield Check(False, f"{about['title'] or name} is public, so the model may have seen it: {advice}.{caution}")


def _truncated(answers: Sequence[Answer], max_tokens: int) -> Check:
    cut_off = [a for a in answers if a.finish_reason == "length"]
    text = f"cut off at the limit of {max_tokens:,} tokens: {_of(len(cut_off), len(answers))}"
    if cut_off:
        text += f", {sum(a.outcome == 'right' for a in cut_off):,} of them right"
    is_few = len(cut_off) <= MOST_TRUNCATED * len(answers)
    return Check(is_few, text if is_few else f"{text}: a larger --max-tokens may give another figure")


def _without_answer(answers: Sequence[Answer], template: str) -> Check:
    ended = [a for a in answers if a.finish_reason == "stop"]
    without = sum(a.extracted is None and a.outcome != "ungradable" for a in ended)
    text = f"ended by themselves without an answer: {_of(without, len(ended))}"
    is_few = without <= MOST_WITHOUT_ANSWER * max(len(ended), 1)
    return Check(is_few, text if is_few else f"{text}: is {template} a template that this model knows?")


def _of(count: int, total: int) -> str:
    return f"{count:,} of {total:,}" + (f" ({format_share(count / total)})" if total else "")

"""`python -m eval grade FILE.jsonl`: judge the completions of a file, and say how far labels and a second grader agree.

A line is a JSON object with `gold` and one of `pred` (a completion), `pred_gen` (a list of [text, count] that are
joined) or `completions` (several samples of one question). `id`, `prompt` (an echo of it is no answer), `expected` or
`verdicts` (labels), `hostile`, `ambiguous` and `cat` may be there too.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

from eval.grading_rows import Row, read_rows
from eval.intervals import over_questions
from eval.metrics import pass_at_k
from eval.policy_report import GRADERS, as_record, as_table, policy_report
from rlhf.data.types import Verdict
from rlhf.rewards.pool import GraderPool
from rlhf.training.statistics import format_share, wilson_interval

MAX_DISAGREEMENTS_SHOWN = 20
EXIT_UNREADABLE, EXIT_USAGE = 1, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("file", type=Path, help="JSON lines: gold, and pred, pred_gen or completions")
    parser.add_argument("--policy-report", action="store_true", help="accuracy by core, hostile cases, speed")
    parser.add_argument("--second-opinion", choices=["math-verify"], help="list where this grader judges otherwise")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write one verdict a completion, as JSON lines")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--workers", type=int, default=1, help="grading processes (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds a verdict may take")


def main(arguments: argparse.Namespace) -> int:
    """Exit status: 0; 1 if a row was unreadable (the others are graded all the same); 2 for a usage error."""
    problem = _usage_problem(arguments)
    if problem:
        print(f"eval grade: {problem}", file=sys.stderr)
        return EXIT_USAGE
    try:
        rows, unreadable = read_rows(arguments.file)
    except OSError as error:
        print(f"eval grade: {arguments.file} cannot be read: {error.strerror}", file=sys.stderr)
        return EXIT_USAGE
    for line, reason in unreadable:
        _say(f"{arguments.file}:{line}: not graded: {reason}", sys.stderr)
    verdicts = judge(rows, "rlhf", arguments.workers, arguments.timeout)
    result = summary(rows, verdicts) | {"unreadable": [{"line": n, "reason": r} for n, r in unreadable]}
    if arguments.second_opinion:
        others = judge(rows, arguments.second_opinion, arguments.workers, arguments.timeout)
        result["second_opinion"] = second_opinion(rows, verdicts, others)
    reports = []
    if arguments.policy_report:
        graders = [name for name in GRADERS if name == "rlhf" or find_spec("math_verify")]
        reports = [policy_report(rows, name, arguments.timeout) for name in graders]
        result["policy_report"] = [as_record(report) for report in reports]
    if arguments.out:
        write_verdicts(arguments.out, rows, verdicts)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _say("\n\n".join(_sections(result, as_table(reports) if reports else [])), sys.stdout)
    return EXIT_UNREADABLE if unreadable else 0


def _usage_problem(arguments: argparse.Namespace) -> str | None:
    if arguments.workers < 1 or arguments.timeout <= 0:
        return f"--workers and --timeout must be positive, not {arguments.workers} and {arguments.timeout:g}"
    if arguments.second_opinion and not find_spec("math_verify"):
        return "--second-opinion math-verify needs the package math-verify: pip install 'math-verify>=0.9'"
    if arguments.out and not arguments.out.parent.is_dir():
        return f"--out: there is no folder {arguments.out.parent}"
    return None


def judge(rows: Sequence[Row], grader: str, workers: int, timeout_s: float) -> list[list[Verdict]]:
    """A verdict for each completion of each row, made in processes that are ended when the time is up."""
    tasks = [
        {"scorer": "math", "completion": completion, "gold": row.gold, "prompt": row.prompt}
        for row in rows
        for completion in row.completions
    ]
    with GraderPool(workers, timeout_s, function=GRADERS[grader]) as pool:
        verdicts = iter(pool.map(tasks))
    return [[next(verdicts) for _ in row.completions] for row in rows]


def summary(rows: Sequence[Row], verdicts: Sequence[Sequence[Verdict]]) -> dict[str, Any]:
    """Counts, accuracy with its 95 % interval and, where rows have several completions, avg@k and pass@k (in [0, 1]).

    k goes up to the smallest number of completions of a row.
    """
    every = [verdict for group in verdicts for verdict in group]
    counts = Counter(verdict.outcome for verdict in every)
    shares = [[verdict.outcome == "right" for verdict in group] for group in verdicts]
    result: dict[str, Any] = {
        "rows": len(rows),
        "completions": len(every),
        **{outcome: counts[outcome] for outcome in ("right", "wrong", "ungradable")},
        "timed_out": sum(verdict.timed_out for verdict in every),
        "accuracy": counts["right"] / len(every) if every else None,
        "agreement": agreement(rows, verdicts),
    }
    if all(len(group) == 1 for group in shares):
        return result | {"interval": list(wilson_interval(counts["right"], len(every)))}
    # the samples of a question are not independent: the interval is over questions
    estimate = over_questions([mean(group) for group in shares])
    k_max = min(map(len, shares))
    result["interval"] = [estimate.low, estimate.high]
    result["avg_at_k"] = {"k": k_max, "value": estimate.value}
    result["pass_at_k"] = {
        str(k): mean(pass_at_k(len(group), sum(group), k) for group in shares) for k in range(1, k_max + 1)
    }
    return result


def agreement(rows: Sequence[Row], verdicts: Sequence[Sequence[Verdict]]) -> dict[str, Any] | None:
    """Where the file labels completions that are not ambiguous: how many verdicts agree, and which do not."""
    labelled, different = 0, []
    for row, group in zip(rows, verdicts, strict=True):
        if row.labels is None or row.ambiguous:
            continue
        labelled += len(row.labels)
        for index, (label, verdict) in enumerate(zip(row.labels, group, strict=True)):
            if (verdict.outcome == "right") != label:
                different.append(_disagreement(row, index, verdict) | {"expected": label})
    return {"labelled": labelled, "agreeing": labelled - len(different), "different": different} if labelled else None


def second_opinion(
    rows: Sequence[Row], verdicts: Sequence[Sequence[Verdict]], others: Sequence[Sequence[Verdict]]
) -> dict[str, Any]:
    """How often two graders agree on right or not right; what the other could not judge is counted apart."""
    agree, without_verdict, different = 0, 0, []
    for row, group, second in zip(rows, verdicts, others, strict=True):
        for index, (verdict, other) in enumerate(zip(group, second, strict=True)):
            if other.outcome == "ungradable":
                without_verdict += 1
            elif (verdict.outcome == "right") == (other.outcome == "right"):
                agree += 1
            else:
                different.append(
                    _disagreement(row, index, verdict) | {"other": other.outcome, "other_extracted": other.extracted}
                )
    timed_out = sum(other.timed_out for group in others for other in group)
    return {"agree": agree, "ungradable": without_verdict, "timed_out": timed_out, "different": different}


def _disagreement(row: Row, index: int, verdict: Verdict) -> dict[str, Any]:
    place = f"{row.id}[{index}]" if row.several else row.id
    return {"id": place, "gold": row.gold, "extracted": verdict.extracted, "ours": verdict.outcome}


def write_verdicts(path: Path, rows: Sequence[Row], verdicts: Sequence[Sequence[Verdict]]) -> None:
    """One JSON object a completion: id, index, gold, label and the verdict."""
    with path.open("w", encoding="ascii") as file:
        for row, group in zip(rows, verdicts, strict=True):
            for index, verdict in enumerate(group):
                label = None if row.labels is None else row.labels[index]
                record = {"id": row.id, "line": row.line, "index": index, "gold": row.gold, "expected": label}
                file.write(json.dumps(record | asdict(verdict)) + "\n")


def _sections(result: dict[str, Any], policy: list[list[str]]) -> list[str]:
    share = result["accuracy"]
    figures = [
        ["rows", str(result["rows"])],
        *([name, str(result[name])] for name in ("completions", "right", "wrong", "ungradable")),
        ["time-outs", str(result["timed_out"])],
        ["accuracy", "-" if share is None else format_share(share, tuple(result["interval"]))],
    ]
    if "avg_at_k" in result:
        figures.append([f"avg@{result['avg_at_k']['k']}", f"{result['avg_at_k']['value']:.6f}"])
        figures += [[f"pass@{k}", f"{value:.6f}"] for k, value in result["pass_at_k"].items()]
    sections = [_aligned(figures)]
    labels, second = result["agreement"], result.get("second_opinion")
    if labels:
        head = f"agrees with {labels['agreeing']} of {labels['labelled']} labels (ambiguous completions left out)"
        sections.append(_listing(head, labels["different"], ("id", "gold", "extracted", "ours", "expected")))
    if second:
        head = (
            f"math-verify: {second['agree']} agree, {len(second['different'])} differ, {second['ungradable']} without "
            f"a verdict ({second['timed_out']} of them timed out)"
        )
        sections.append(_listing(head, second["different"], ("id", "gold", "extracted", "ours", "other")))
    return [*sections, _aligned(policy)] if policy else sections


def _listing(head: str, items: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    if not items:
        return head
    table = [list(columns), *([_short(item[c]) for c in columns] for item in items[:MAX_DISAGREEMENTS_SHOWN])]
    more = len(items) - MAX_DISAGREEMENTS_SHOWN
    return f"{head}\n{_aligned(table)}" + (f"\n... and {more} more (--json lists all)" if more > 0 else "")


def _short(value: object, limit: int = 60) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _aligned(table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def _say(text: str, stream: Any) -> None:
    """Print text that may hold what the terminal cannot show (a lone surrogate, a control character)."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    print(shown.encode(stream.encoding or "utf-8", "backslashreplace").decode(stream.encoding or "utf-8"), file=stream)

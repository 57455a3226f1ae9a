"""A grader measured on cases with known answers: accuracy, resistance to hostile input, speed.

`clear` cases are neither hostile nor ambiguous. Of these, the boxed core holds a box, the plain core none: a grader
that reads boxes only cannot score on the latter, so the two are told apart.
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from eval.grading_rows import Row
from rlhf.data.types import Verdict
from rlhf.rewards.pool import GraderPool
from rlhf.training.statistics import format_share, wilson_interval

MARKER = "graderpwned"
"""The file that a payload of the hostile cases leaves in the working folder if its text is run."""
GRADERS = {
    "rlhf": "rlhf.rewards.scorers:score_task",
    "math-verify": "eval.second_opinion:math_verify_task",
}
"""Name of a grader, and the function that its worker processes call."""
MAX_HOSTILE_CPU_S = 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """A verdict, the CPU seconds its task took, and the largest memory of its process until then, in MiB."""

    verdict: Verdict
    cpu_s: float
    peak_mib: float


@dataclass(frozen=True, slots=True)
class Core:
    """Agreement with the labels of one group of cases."""

    cases: int
    agreeing: int
    false_positives: tuple[str, ...]
    false_negatives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """One grader's figures; `slowest` are (id, CPU seconds) of hostile cases, `killed` those without a verdict."""

    grader: str
    boxed: Core
    plain: Core
    hostile: Core
    slowest: tuple[tuple[str, float], ...]
    over_a_second: int
    killed: int
    payload_ran: bool
    peak_mib: float
    median_ms: float
    p95_ms: float


def measured_task(task: Mapping[str, Any]) -> Verdict:
    """Judge `task` by the grader it names; the reason of the verdict carries the measurements. Runs in a worker."""
    module, _, name = GRADERS[task["grader"]].partition(":")
    function = getattr(import_module(module), name)
    started = time.thread_time()
    verdict = function(task)
    seconds = time.thread_time() - started
    return replace(verdict, reason=json.dumps([seconds, _peak_mib(), verdict.reason]))


def _peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage on Linux counts the process that started this one too: its memory at the fork outlives exec
        return next(int(line.split()[1]) / 2**10 for line in status.read_text().splitlines() if "VmHWM" in line)
    try:
        import resource
    except ImportError:  # not on Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def policy_report(rows: Sequence[Row], grader: str, timeout_s: float) -> PolicyReport:
    """Measure `grader` on labelled rows of one completion each, one process at a time."""
    rows = [row for row in rows if row.labels is not None and len(row.completions) == 1]
    ordinary = [row for row in rows if not row.hostile]
    hostile = [row for row in rows if row.hostile]
    usual = _measure(ordinary, grader, timeout_s)
    # a payload that runs leaves its marker in the working folder: here an empty one
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        attacked = _measure(hostile, grader, timeout_s)
        payload_ran = (Path(folder) / MARKER).exists()
    milliseconds = sorted(1000 * m.cpu_s for m in usual.values())
    names = {row.line: row.id for row in rows}
    slowest = sorted(((names[line], m.cpu_s) for line, m in attacked.items()), key=lambda pair: -pair[1])
    return PolicyReport(
        grader=grader,
        boxed=_core([r for r in ordinary if r.clear and r.boxed], usual),
        plain=_core([r for r in ordinary if r.clear and not r.boxed], usual),
        hostile=_core([r for r in hostile if not r.ambiguous], attacked),
        slowest=tuple(slowest[:5]),
        over_a_second=sum(seconds > MAX_HOSTILE_CPU_S for _, seconds in slowest),
        killed=sum(m.cpu_s == float("inf") for m in attacked.values()),
        payload_ran=payload_ran,
        peak_mib=max((m.peak_mib for m in attacked.values() if m.peak_mib >= 0), default=float("nan")),
        median_ms=statistics.median(milliseconds) if milliseconds else float("nan"),
        p95_ms=milliseconds[int(0.95 * len(milliseconds))] if milliseconds else float("nan"),
    )


def _measure(rows: Sequence[Row], grader: str, timeout_s: float) -> dict[int, Measured]:
    """By line number. A case whose process was ended counts with infinite CPU time."""
    tasks = [
        {"grader": grader, "scorer": "math", "completion": r.completions[0], "gold": r.gold, "prompt": r.prompt}
        for r in rows
    ]
    # libraries are loaded once, not in the first case
    warm = {"grader": grader, "scorer": "math", "completion": r"\boxed{\sqrt{2}}", "gold": r"\sqrt{3}"}
    with GraderPool(1, timeout_s, function="eval.policy_report:measured_task") as pool:
        verdicts = pool.map([warm, *tasks])[1:]
    return {row.line: _measured(verdict) for row, verdict in zip(rows, verdicts, strict=True)}


def _measured(verdict: Verdict) -> Measured:
    try:
        seconds, peak, reason = json.loads(verdict.reason)
    except json.JSONDecodeError:  # the pool's own words: too late, or the worker died
        return Measured(verdict, float("inf"), float("nan"))
    return Measured(replace(verdict, reason=reason), seconds, peak)


def _core(rows: Sequence[Row], results: Mapping[int, Measured]) -> Core:
    judged = [(row.id, results[row.line].verdict.outcome == "right", row.labels == (True,)) for row in rows]
    return Core(
        cases=len(rows),
        agreeing=sum(said == wanted for _, said, wanted in judged),
        false_positives=tuple(id_ for id_, said, wanted in judged if said and not wanted),
        false_negatives=tuple(id_ for id_, said, wanted in judged if wanted and not said),
    )


def as_table(reports: Sequence[PolicyReport]) -> list[list[str]]:
    """One row a figure, one column a grader; the first row and column are the headings."""
    columns = [_column(report) for report in reports]
    names = list(columns[0])
    return [["", *(r.grader for r in reports)], *([name, *(column[name] for column in columns)] for name in names)]


def _column(report: PolicyReport) -> dict[str, str]:
    figures = {}
    for name, core in (("boxed core", report.boxed), ("plain core", report.plain)):
        interval = wilson_interval(core.agreeing, core.cases)
        figures[name] = format_share(core.agreeing / core.cases, interval) if core.cases else "-"
        figures[f"{name}: cases"] = str(core.cases)
        figures[f"{name}: false positives"] = str(len(core.false_positives))
        figures[f"{name}: false negatives"] = str(len(core.false_negatives))
    slowest = ", ".join(f"{id_} {seconds:.2f}" for id_, seconds in report.slowest[:3])
    return figures | {
        "hostile: right verdicts": f"{report.hostile.agreeing} of {report.hostile.cases}",
        "hostile: slowest, CPU s": slowest or "-",
        "hostile: over 1 s": str(report.over_a_second),
        "hostile: process ended": str(report.killed),
        "hostile: a payload ran": "YES" if report.payload_ran else "no",
        "hostile: peak memory, MiB": f"{report.peak_mib:.0f}",
        "CPU ms a call: median": f"{report.median_ms:.3f}",
        "CPU ms a call: p95": f"{report.p95_ms:.3f}",
    }


def as_record(report: PolicyReport) -> dict[str, Any]:
    """For JSON; what is not finite becomes null."""
    return json.loads(json.dumps(asdict(report)), parse_constant=lambda _: None)

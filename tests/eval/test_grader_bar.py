"""The bar that the grader must clear on cases with known answers, and the report that measures it."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eval.grading_rows import Row, read_rows
from eval.policy_report import MARKER, as_record, as_table, policy_report
from rlhf.rewards import grade


@pytest.fixture(scope="module")
def cases() -> list[Row]:
    default = Path(__file__).parents[2] / ".." / "shared" / "data"
    path = Path(os.environ.get("RLHF_TEST_DATA", default)) / "grading_cases.jsonl"
    if not path.is_file():
        pytest.skip(f"there is no {path}: set RLHF_TEST_DATA to the folder of the test data")
    rows, unreadable = read_rows(path)
    assert unreadable == []
    return rows


def test_the_bar(cases: list[Row]) -> None:
    report = policy_report(cases, "rlhf", timeout_s=10.0)
    assert report.boxed.cases > 200 and report.plain.cases > 20 and report.hostile.cases > 30
    assert report.boxed.agreeing / report.boxed.cases >= 0.985
    assert len(report.boxed.false_positives) <= 2
    assert report.plain.agreeing / report.plain.cases >= 0.98
    assert report.hostile.agreeing == report.hostile.cases
    assert report.slowest[0][1] < 1.0 and report.over_a_second == report.killed == 0
    assert not report.payload_ran
    assert report.peak_mib < 256
    # times themselves are of the machine: a quarter of a peer's at most, measured beside it
    peer = policy_report(cases, "math-verify", timeout_s=10.0)
    assert report.median_ms <= 0.25 * peer.median_ms and report.p95_ms <= 0.25 * peer.p95_ms


def test_eight_threads_give_the_verdicts_of_one(cases: list[Row]) -> None:
    tasks = [(row.completions[0], row.gold, row.prompt) for row in cases]
    alone = [grade(*task).outcome for task in tasks]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(2):
            assert [verdict.outcome for verdict in threads.map(lambda task: grade(*task), tasks)] == alone


def row(line: int, gold: str, completion: str, label: bool, **marks: bool) -> Row:
    return Row(line, f"case{line}", gold, (completion,), labels=(label,), **marks)


def test_the_report_tells_the_cores_apart() -> None:
    rows = [
        row(1, "4", r"\boxed{4}", True),
        row(2, "4", r"\boxed{4}", False),
        row(3, "4", r"\boxed{5}", True),
        row(4, "4", "The answer is 4.", True),
        row(5, "4", r"\boxed{four-ish}", True, ambiguous=True),
        row(6, "4", r"\boxed{2^{2^{40}}}", False, hostile=True),
    ]
    report = policy_report(rows, "rlhf", timeout_s=10.0)
    assert (report.boxed.cases, report.boxed.agreeing) == (3, 1)
    assert report.boxed.false_positives == ("case2",)
    assert report.boxed.false_negatives == ("case3",)
    assert (report.plain.cases, report.plain.agreeing) == (1, 1)
    assert (report.hostile.cases, report.hostile.agreeing) == (1, 1)
    assert [name for name, _ in report.slowest] == ["case6"]
    assert 0 < report.median_ms < 100
    table = as_table([report, report])
    assert {len(line) for line in table} == {3}
    assert json.loads(json.dumps(as_record(report)))["boxed"]["cases"] == 3


def test_a_payload_that_ran_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder of the graders is a fresh one: a marker already lying around is not theirs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / MARKER).touch()
    rows = [row(1, "4", f'\\boxed{{open("{MARKER}","w")}}', False, hostile=True)]
    report = policy_report(rows, "rlhf", timeout_s=10.0)
    assert not report.payload_ran
    assert report.median_ms != report.median_ms  # no ordinary cases: nothing is known
    assert as_record(report)["median_ms"] is None

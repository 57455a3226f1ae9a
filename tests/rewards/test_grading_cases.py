"""The public half of a set of grader cases, and real model completions: accuracy and hostility.

Speed is compared with a peer's in the same run, in `tests/eval/test_grader_bar.py`."""

from pathlib import Path
from typing import Any

import pytest

from rlhf.rewards import grade
from tests.cpu_time import cpu_seconds


def completion(row: dict[str, Any]) -> str:
    if "pred" in row:
        return row["pred"]
    return "".join(text * count for text, count in row["pred_gen"])


def judged(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], bool]]:
    """Each case with the grader's verdict."""
    return [(row, grade(completion(row), row["gold"], row.get("prompt")).outcome == "right") for row in rows]


def test_accuracy_on_clear_cases(rows: Any) -> None:
    clear = [r for r in rows("grading_cases.jsonl") if not r.get("hostile") and not r.get("ambiguous")]
    results = judged(clear)
    boxed = [(row, right) for row, right in results if "boxed" in completion(row) or "fbox" in completion(row)]
    plain = [
        (row, right) for row, right in results if "boxed" not in completion(row) and "fbox" not in completion(row)
    ]
    assert len(boxed) > 200 and len(plain) > 20
    assert sum(right == row["expected"] for row, right in boxed) / len(boxed) >= 0.985
    assert sum(right and not row["expected"] for row, right in boxed) <= 2
    assert sum(right == row["expected"] for row, right in plain) / len(plain) >= 0.98


def test_hostile_cases(rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = [r for r in rows("grading_cases.jsonl") if r.get("hostile")]
    wrong = [row["id"] for row, right in judged(hostile) if not row.get("ambiguous") and right != row["expected"]]
    assert wrong == []
    for row in hostile:
        assert cpu_seconds(lambda row=row: judged([row])) < 1.0, row["id"]
    assert list(tmp_path.iterdir()) == [], "a payload ran: it left a file behind"


def test_real_completions(rows: Any) -> None:
    wrong = [
        (row["id"], index)
        for row in rows("real_completions.jsonl")
        for index, (text, verdict) in enumerate(zip(row["completions"], row["verdicts"], strict=True))
        if (grade(text, row["gold"]).outcome == "right") != bool(verdict)
    ]
    assert wrong == []

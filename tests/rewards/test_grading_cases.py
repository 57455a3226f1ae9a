"""The public half of a set of grader cases, and real model completions: accuracy and hostility.

Speed is compared with a peer's in the same run, in `tests/eval/test_grader_bar.py`."""

import time
from pathlib import Path
from typing import Any

import pytest

from rlhf.rewards import grade


def completion(row: dict[str, Any]) -> str:
    if "pred" in row:
        return row["pred"]
    return "".join(text * count for text, count in row["pred_gen"])


def judged(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], bool, float]]:
    """Each case with the grader's verdict and the CPU seconds it took."""
    grade(r"\boxed{\sqrt{2}}", r"\sqrt{3}")  # libraries are loaded once, not in the first case
    results = []
    for row in rows:
        text = completion(row)
        started = time.thread_time()
        verdict = grade(text, row["gold"], row.get("prompt"))
        results.append((row, verdict.outcome == "right", time.thread_time() - started))
    return results


def test_accuracy_on_clear_cases(rows: Any) -> None:
    clear = [r for r in rows("grading_cases.jsonl") if not r.get("hostile") and not r.get("ambiguous")]
    results = judged(clear)
    boxed = [(row, right) for row, right, _ in results if "boxed" in completion(row) or "fbox" in completion(row)]
    plain = [
        (row, right) for row, right, _ in results if "boxed" not in completion(row) and "fbox" not in completion(row)
    ]
    assert len(boxed) > 200 and len(plain) > 20
    assert sum(right == row["expected"] for row, right in boxed) / len(boxed) >= 0.985
    assert sum(right and not row["expected"] for row, right in boxed) <= 2
    assert sum(right == row["expected"] for row, right in plain) / len(plain) >= 0.98


def test_hostile_cases(rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = judged([r for r in rows("grading_cases.jsonl") if r.get("hostile")])
    assert [row["id"] for row, right, _ in results if not row.get("ambiguous") and right != row["expected"]] == []
    assert max(seconds for _, _, seconds in results) < 1.0
    assert list(tmp_path.iterdir()) == [], "a payload ran: it left a file behind"


def test_real_completions(rows: Any) -> None:
    wrong = [
        (row["id"], index)
        for row in rows("real_completions.jsonl")
        for index, (text, verdict) in enumerate(zip(row["completions"], row["verdicts"], strict=True))
        if (grade(text, row["gold"]).outcome == "right") != bool(verdict)
    ]
    assert wrong == []

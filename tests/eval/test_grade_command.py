"""`python -m eval grade`: figures of real completions, exit statuses, and rows that cannot be read."""

import json
import os
from pathlib import Path

import pytest

from eval.__main__ import main

DATA = Path(os.environ.get("RLHF_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def test_real_completions_have_their_reference_figures(capsys):
    file = DATA / "real_completions.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is absent: set RLHF_TEST_DATA")
    assert main(["grade", str(file)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "agrees with 400 of 400 labels" in told


def test_unreadable_rows_are_told_and_the_rest_is_graded(tmp_path, capsys):
    file, out = tmp_path / "rows.jsonl", tmp_path / "verdicts.jsonl"
    rows = [{"gold": "5", "pred": "\\boxed{5}"}, {"pred": "no gold"}, {"gold": "5", "completions": ["4", "it is 5"]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn")
    assert main(["grade", str(file), "--out", str(out)]) == 1
    errors = capsys.readouterr().err
    assert f"{file}:2:" in errors and f"{file}:4:" in errors
    verdicts = [json.loads(line) for line in out.read_text().splitlines()]
    assert [v["outcome"] for v in verdicts] == ["right", "wrong", "right"]


def test_a_missing_file_is_a_usage_error(tmp_path, capsys):
    assert main(["grade", str(tmp_path / "nothing.jsonl")]) == 2
    assert "cannot be read" in capsys.readouterr().err

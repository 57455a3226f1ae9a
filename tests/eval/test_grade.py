"""`python -m eval grade`: what it reads, counts, writes and returns."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.grade import judge, second_opinion, summary
from eval.grading_rows import UnreadableRow, read_rows, row_of


def graded(capsys: pytest.CaptureFixture[str], path: Path, *flags: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, the JSON result (if any), standard error."""
    status = main(["grade", str(path), "--json", *flags])
    output = capsys.readouterr()
    return status, json.loads(output.out) if output.out else {}, output.err


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_counts_and_wilson_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        *({"gold": "4", "pred": rf"\boxed{{{n}}}"} for n in (4, 4, 4, 5)),
        {"gold": r"\int_0^1 x dx", "pred": r"\boxed{1/2}"},
        {"gold": 7, "pred_gen": [["7", 1], [" ", 50_000], ["7", 1]]},
    )
    status, result, _ = graded(capsys, path)
    assert status == 0
    assert [result[name] for name in ("rows", "right", "wrong", "ungradable", "timed_out")] == [6, 4, 1, 1, 0]
    # Wilson, 4 of 6: centre (4 + z^2/2) / (6 + z^2), half width z sqrt(4 * 2 / 6 + z^2 / 4) / (6 + z^2), z = 1.959964
    assert result["interval"] == pytest.approx([0.299993, 0.903228], abs=2e-6)
    assert result["agreement"] is None


def test_several_completions_give_the_unbiased_pass_at_k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong = r"\boxed{4}", r"\boxed{5}"
    path = write(
        tmp_path / "rows.jsonl",
        {"id": "a", "gold": "4", "completions": [right, wrong, wrong, wrong], "verdicts": [1, 0, 0, 1]},
        {"id": "b", "gold": "4", "completions": [right, right, wrong, wrong], "verdicts": [True, True, False, False]},
    )
    status, result, _ = graded(capsys, path)
    assert status == 0
    assert result["avg_at_k"] == {"k": 4, "value": 3 / 8}
    # 1 - C(n-c, k) / C(n, k): question a (c = 1) 1/4, 1/2, 3/4, 1; question b (c = 2) 1/2, 5/6, 1, 1
    assert list(result["pass_at_k"].values()) == pytest.approx([3 / 8, 2 / 3, 7 / 8, 1.0])
    agreement = result["agreement"]
    assert (agreement["labelled"], agreement["agreeing"]) == (8, 7)
    assert [(d["id"], d["extracted"], d["ours"], d["expected"]) for d in agreement["different"]] == [
        ("a[3]", "5", "wrong", True)
    ]


def test_real_completions(rows_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, result, _ = graded(capsys, rows_file)
    assert result["agreement"]["agreeing"] == result["agreement"]["labelled"] == 400
    assert main(["grade", str(rows_file)]) == 0
    assert "agrees with 400 of 400 labels" in " ".join(capsys.readouterr().out.split())
    assert list(result["pass_at_k"].values()) == pytest.approx(
        [0.880000, 0.915714, 0.937857, 0.952286, 0.962143, 0.969286, 0.975000, 0.980000], abs=1e-6
    )


@pytest.fixture
def rows_file() -> Path:
    import os

    default = Path(__file__).parents[2] / ".." / "shared" / "data"
    path = Path(os.environ.get("RLHF_TEST_DATA", default)) / "real_completions.jsonl"
    if not path.is_file():
        pytest.skip(f"there is no {path}: set RLHF_TEST_DATA to the folder of the test data")
    return path


BAD_LINES = {
    b"{": "not JSON",
    b"[1]": "a JSON object was expected, not list",
    b'{"pred": "4"}': "`gold` is missing",
    b'{"gold": true, "pred": "4"}': "`gold` is missing or neither a text nor a number",
    b'{"gold": "4"}': "there is none",
    b'{"gold": "4", "pred": "4", "completions": ["4"]}': "there is pred and completions",
    b'{"gold": "4", "pred": 4}': "`pred` is not a text",
    b'{"gold": "4", "completions": []}': "`completions` is not a list of texts that is not empty",
    b'{"gold": "4", "pred_gen": [["4", "1"]]}': "`pred_gen` is not a list of [text, count]",
    b'{"gold": "4", "completions": ["4", "5"], "verdicts": [1]}': "one value for each of the 2 completions",
    b'{"gold": "4", "pred": "4", "expected": "yes"}': "neither true nor false",
    b'{"gold": "4", "pred": "4", "prompt": 3}': "`prompt` is not a text",
    b'{"gold": "\xff", "pred": "4"}': "not JSON in UTF-8",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_an_unreadable_line_says_what_is_wrong(line: bytes) -> None:
    with pytest.raises(UnreadableRow) as raised:
        row_of(line, 1)
    assert BAD_LINES[line] in str(raised.value)


def test_unreadable_rows_are_named_and_the_rest_is_graded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"gold": "4", "pred": "#### 4"}\n\n{"gold": "4"\n{"gold": "5", "pred": "#### 4"}\n')
    status, result, error = graded(capsys, path, "--out", str(tmp_path / "out.jsonl"))
    assert status == 1
    assert [json.loads(line)["outcome"] for line in (tmp_path / "out.jsonl").open()] == ["right", "wrong"]
    assert (result["right"], result["wrong"]) == (1, 1)
    assert [row["line"] for row in result["unreadable"]] == [3]
    assert f"{path}:3: not graded: not JSON" in error


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["absent.jsonl"], "cannot be read"),
        (["rows.jsonl", "--workers", "0"], "must be positive"),
        (["rows.jsonl", "--timeout", "-1"], "must be positive"),
        (["rows.jsonl", "--out", "no/such/folder.jsonl"], "there is no folder"),
    ],
)
def test_usage_errors(
    flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", {"gold": "4", "pred": "4"})
    status, _, error = graded(capsys, Path(flags[0]), *flags[1:])
    assert status == 2
    assert words in error


def test_verdicts_are_written_one_a_completion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", {"id": "a", "gold": "4", "completions": ["\\boxed{4}", "\\boxed{\ud800}"]})
    graded(capsys, path, "--out", str(tmp_path / "out.jsonl"))
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(w["id"], w["index"], w["outcome"], w["extracted"]) for w in written] == [
        ("a", 0, "right", "4"),
        ("a", 1, "wrong", "\ud800"),
    ]


def test_tables_show_what_a_terminal_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", {"gold": "4", "pred": "\\boxed{\ud800\x1b}", "expected": True})
    assert main(["grade", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "accuracy     0.0 % [0.0, 79.3]" in shown
    assert r"\ud800\x1b" in shown


def test_an_echo_of_the_prompt_is_no_answer(tmp_path: Path) -> None:
    prompt = "Put the answer 4 in \\boxed{4}, please."
    path = write(tmp_path / "rows.jsonl", {"gold": "4", "prompt": prompt, "pred": f"{prompt} I do not know."})
    rows, _ = read_rows(path)
    assert judge(rows, "rlhf", 1, 10.0)[0][0].outcome == "wrong"


@pytest.mark.slow
def test_a_second_opinion_that_hangs_is_ended_and_disagreements_are_listed(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    path = write(
        tmp_path / "rows.jsonl",
        {"id": "agree", "gold": "4", "pred": r"\boxed{4}"},
        {"id": "hang", "gold": "4", "pred": r"\boxed{((100!)!)!}"},
        {"id": "correction", "gold": "42", "pred": r"First \boxed{41}. Checking, that fails. \boxed{42}"},
    )
    rows, _ = read_rows(path)
    ours = judge(rows, "rlhf", 1, 3.0)
    result = second_opinion(rows, ours, judge(rows, "math-verify", 1, 3.0))
    assert result["agree"] == 1
    assert result["timed_out"] == 1
    assert [(d["id"], d["ours"], d["other"]) for d in result["different"]] == [("correction", "right", "wrong")]


def test_accuracy_of_no_rows_is_unknown() -> None:
    assert summary([], [])["accuracy"] is None

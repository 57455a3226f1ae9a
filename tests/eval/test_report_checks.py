"""What the report of an evaluation tells its reader to look at."""

import html
import json
import re
from dataclasses import asdict, replace
from functools import partial

import pytest

from eval.__main__ import main
from eval.benchmarks import find_entry
from eval.entries import DatasetEntry
from eval.report import write_report
from rlhf.training.run_folder import json_line
from tests.eval.result_folders import answer, page_of, text_of, write_folder


@pytest.fixture
def evaluate(tmp_path):
    """Writes a result folder of given answers."""
    return partial(write_folder, tmp_path)


def failed(page):
    """Checks to look at; whether this checkout has changes is not the tests' to know."""
    items = map(html.unescape, re.findall(r'chip look">look</span><span>(.*?)</span></li>', page))
    return [item for item in items if "code had changes" not in item]


def test_what_a_reader_should_look_at_is_said(evaluate):
    answers = [answer(0, i) for i in range(40)]
    answers[:8] = [replace(a, finish_reason="length", outcome="wrong", extracted=None) for a in answers[:8]]
    answers[8:12] = [replace(a, outcome="wrong", extracted=None) for a in answers[8:12]]
    answers[12:14] = [replace(a, outcome="ungradable", timed_out=True) for a in answers[12:14]]
    own = DatasetEntry(name="own", question="q", answer="a", files=("own.jsonl",))
    assert failed(page_of(evaluate(answers, {"own": own}, limit=40))) == [
        "the weights are Qwen/Qwen2.5-Math-1.5B-Instruct on the hub, without a revision, so they may change "
        "(--revision)",
        # Wilson's 26 of 40: 49.5 to 77.9
        "the 95 % interval of accuracy is 28.4 points wide, from 40 questions: two such evaluations show differences "
        "from about 20 points on (eval compare pairs the questions and shows smaller ones)",
        "only the first 40 questions were asked (--limit 40): no figure of the whole set",
        "cut off at the limit of 700 tokens: 8 of 40 (20.0 %), 0 of them right: a larger --max-tokens may give another "
        "figure",
        "ended by themselves without an answer: 4 of 32 (12.5 %): is chat a template that this model knows?",
        "ungradable (not counted as right, and not called wrong): 2 of 40 (5.0 %)",
        "grader time-outs (a part of the ungradable): 2; the limit is 10 s (--grader-timeout-s)",
    ]  # fmt: skip


def test_a_public_set_is_set_beside_a_generated_one(evaluate):
    public = [answer(0, i, benchmark="gsm8k") for i in range(200)]
    entries = {name: find_entry(name) for name in ("gsm8k", "word_problems")}
    looks = failed(page_of(evaluate(public, entries, revision="abc")))
    assert [text.partition(".")[0] for text in looks] == [
        "GSM8K is public, so the model may have seen it: ask a generated set beside it, e"
    ]
    both = public + [answer(0, i, benchmark="word_problems") for i in range(200)]
    page = page_of(evaluate(both, entries, revision="abc"))
    looks = failed(page)
    assert len(looks) == 1 and "may have seen it: compare with word_problems" in looks[0]
    assert looks[0].startswith("gsm8k: ") and 'href="#benchmark-2"' in page and "checks passed" in page


def test_files_of_two_runs_are_told_apart(evaluate, capsys):
    folder = evaluate([answer(0, i) for i in range(20)])
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert "counted again from samples.jsonl: 20 of 20 (100.0 %) right, the same accuracy" in page_of(folder)
    changed = [answer(0, i, outcome="right" if i else "wrong") for i in range(20)]
    (folder / "samples.jsonl").write_bytes(b"".join(json_line(asdict(a)) for a in changed))
    write_report(folder)
    assert "not of one run: 20 of 20 right in the one, 19 of 20 in the other" in failed(page_of(folder))[1]


def test_the_code_and_the_weights_have_names(evaluate):
    folder = evaluate([answer(0, i) for i in range(20)])
    summary = json.loads((folder / "summary.json").read_text())
    summary["environment"]["git"] = {"commit": "0123456789abcdef", "dirty": True}
    summary |= {"model_hash": "c0ffee", "adapter_hash": "ad0be"}
    (folder / "summary.json").write_text(json.dumps(summary))
    page = page_of(write_report(folder).parent)
    assert "the code had changes that commit 0123456789ab does not have" in page
    assert "the weights are named by a hash of their files" in page
    assert "model c0ffee" in text_of(page) and "adapter ad0be" in text_of(page)

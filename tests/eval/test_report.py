"""report.html of an evaluation: the numbers of summary.json, and completions that mean no good."""

import json
import os
import re
from dataclasses import asdict, replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from eval.__main__ import main
from eval.questions import Answer
from eval.report import EXAMPLES, pick_examples
from rlhf.rewards.grading import grade
from rlhf.training.report.page import LONGEST_TEXT
from rlhf.training.run_folder import json_line
from tests.eval.result_folders import MAX_TOKENS, answer, page_of, text_of, tokenizer, write_folder

DATA = Path(os.environ.get("RLHF_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
SUBJECTS = ("Algebra", "Geometry", "Number theory")
HOSTILE = [
    "</pre></article></main><script>alert('owned')</script><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} {% raw %} \x00\x01\x1b[31m\x7f\x85 \ud800 \ufffe",
    r"the answer is \boxed{" + "\u202e321\u202c" + "}",
    "<svg onload=alert(1)><style>*{display:none}</style><!-- ",
    "0123456789" * 100_000,
    "\n" * 50_000 + "&lt;b&gt; \r\n\u2028 ]]> </textarea>",
    "a" + "\u0301" * 5000,
    "",
]


@pytest.fixture(scope="module")
def real():
    """50 questions of MATH x 8 completions of Qwen2.5-Math with its reward model's scores, graded here."""
    path = DATA / "real_completions.jsonl"
    if not path.exists():
        pytest.skip(f"there is no {path}: set RLHF_TEST_DATA to the folder of the test data")
    answers = []
    for row, line in enumerate(path.read_text().splitlines()):
        record = json.loads(line)
        for sample, (text, score) in enumerate(
            zip(record["completions"], record["reward_model_scores"], strict=True)
        ):
            ids, verdict = tokenizer()(text).input_ids, grade(text, record["gold"])
            answers.append(Answer(
                "math_part", record["id"], sample, sample, f"Problem {record['id']}", text, min(len(ids), MAX_TOKENS),
                "length" if len(ids) >= MAX_TOKENS else "stop", record["gold"], verdict.outcome, verdict.extracted,
                verdict.reason, level=str(1 + row % 5), subject=SUBJECTS[row % 3], score=score,
            ))  # fmt: skip
    return answers


@pytest.fixture
def evaluate(tmp_path):
    """Writes a result folder of given answers."""
    return partial(write_folder, tmp_path)


class Tags(HTMLParser):
    """Every tag and attribute; a tag that is closed out of order, or never, is an error."""

    VOID = {"meta", "input", "br", "img", "link"}

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.attributes, self.marks = [], set(), [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.add(tag)
        self.attributes += attributes
        if tag == "b":
            self.marks.append(dict(attributes)["style"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def titles(page):
    return re.findall(r"<h3>(.*?)</h3><span>", page)


def test_the_page_has_every_number_of_the_summary(real, evaluate):
    folder = evaluate(real)
    page = page_of(folder)
    text, tags = text_of(page), Tags(page)
    record = json.loads((folder / "summary.json").read_text())["benchmarks"]["math_part"]
    assert {"avg@8", "pass@1", "pass@5", "maj@8", "best-of-4", "truncated"} <= record["estimates"].keys()
    for name, e in record["estimates"].items():
        scale, unit = (1, "") if name == "mean tokens" else (100, " %")
        shown = f"{name} {scale * e['value']:.1f}{unit} {scale * e['low']:.1f} to {scale * e['high']:.1f}{unit} "
        assert shown in text, shown
        if unit:
            assert f"left: {100 * e['value']}%" in tags.marks
    for name in ("truncated", "no answer", "ungradable", "timed out"):
        assert f"{record['counts'][name]:,} of 400" in text
    # the set's own figures (avg@8 and pass@8 of its README), not through our code
    assert "pass@8 98.0 %" in text and "88.0 %" in text
    assert "50 questions × 8 samples" in text and f"{record['counts']['tokens']:,}" in text
    assert record["questions_hash"] in text and "1 min 15 s" in text and "clustered by question" in text
    assert titles(page) == [
        "Right answers over k", "Solved how often", "Completion length", "Accuracy by length", "Accuracy by level",
        "Accuracy by subject",
    ]  # fmt: skip


def test_charts_show_the_counts_and_follow_the_page(real, evaluate):
    page = page_of(evaluate(real))
    drawings = re.findall(r"<svg xmlns.*?</svg>", page, flags=re.S)
    assert len(drawings) == 6
    for svg in drawings:
        ElementTree.fromstring(svg)
        assert "var(--" in svg and not re.search(r"#0[1-5]0[0-9a-f]{3}", svg)
    curves, solved, lengths, by_length, levels, subjects = (
        re.findall(r"<text[^>]*>(.*?)</text>", svg) for svg in drawings
    )
    assert [label for label in curves if "k" in label] == ["samples (k)", "pass@k", "maj@k", "best-of-k"]
    by_question = {}
    for a in real:
        by_question[a.id] = by_question.get(a.id, 0) + (a.outcome == "right")
    counts = [str(list(by_question.values()).count(c)) for c in range(9)]
    assert [c for c in counts if c != "0"] == [c for c in solved if c in counts][-sum(c != "0" for c in counts):]
    assert f"never {counts[0]}, always {counts[8]}" in page
    assert f"limit {MAX_TOKENS}" in lengths and "right" in lengths and "wrong" in lengths
    ended = [a.tokens for a in real if a.finish_reason == "stop"]
    fifths = [tuple(map(int, label.split("–"))) for label in by_length if "–" in label]
    assert len(fifths) == 5 and "cut off" in by_length
    assert [sum(low <= n <= high for low, high in fifths) for n in ended] == [1] * len(ended)
    assert all(len(ended) / 5 - 8 < sum(low <= n <= high for n in ended) < len(ended) / 5 + 8 for low, high in fifths)
    assert [label for label in levels if "(" in label] == [f"{level}  (10)" for level in range(1, 6)]
    assert [label for label in subjects if "(" in label] == [
        f"{s}  ({n})" for s, n in zip(SUBJECTS, (17, 17, 16), strict=True)
    ]


def test_one_sample_a_question_has_no_curve(real, evaluate):
    first = [replace(a, level=None, subject=None, score=None) for a in real if a.sample == 0]
    page = page_of(evaluate(first))
    right = sum(a.outcome == "right" for a in first)
    assert titles(page) == ["Completion length", "Accuracy by length"]
    assert f"accuracy {2 * right:.1f} %" in text_of(page) and "95 %, Wilson" in text_of(page)
    assert "pass@" not in page and "maj@" not in page and "greedy" in page


def test_scores_bring_best_of_k_and_none_are_needed(evaluate):
    samples = [answer(s, q, outcome="right" if s == q % 2 else "wrong") for q in range(12) for s in range(2)]
    page = page_of(evaluate(samples))
    assert "best-of" not in page and titles(page)[:2] == ["Right answers over k", "Solved how often"]
    page = page_of(evaluate([replace(a, score=float(a.outcome == "right")) for a in samples]))
    assert "best-of-2 100.0 %" in text_of(page) and "best-of-1 50.0 %" in text_of(page)


def test_nothing_right_and_everything_right_can_be_shown(evaluate):
    wrong = [answer(s, q, outcome="wrong", extracted="3") for q in range(10) for s in range(4)]
    page = page_of(evaluate(wrong))
    assert "avg@4 0.0 % 0.0 to 27.8 %" in text_of(page) and "never 10, always 0" in page
    assert "right (" not in page and "wrong (40)" in page
    page = page_of(evaluate([replace(a, outcome="right", extracted="2") for a in wrong]))
    assert "avg@4 100.0 % 72.2 to 100.0 %" in text_of(page) and "never 0, always 10" in page


def test_hostile_completions_stay_text(evaluate):
    outcomes = ["right"] * 4 + ["wrong"] * 4  # as many of each as are shown
    answers = [
        answer(
            0, i, prompt=text[:9000], completion=text, extracted=text[:300] or None, reason=text[:900], gold=text[:50],
            outcome=outcome, level=text[:60] or None, subject=text[:80], id=f"{text[:90]}{i}", tokens=len(text),
        )
        for i, (text, outcome) in enumerate(zip(HOSTILE, outcomes, strict=True))
    ]  # fmt: skip
    folder = evaluate(answers)
    page, tags = page_of(folder), Tags(page_of(folder))
    assert not tags.seen & {"script", "img", "link", "iframe", "object", "textarea", "style "}
    assert not [name for name, _ in tags.attributes if name.startswith("on") or name == "src"]
    assert all(value.startswith("#") for name, value in tags.attributes if name.endswith("href"))
    assert page.count("<style>") == 1 and page.count("</main>") == 1 and "<!--" not in page.partition("<main>")[2]
    outside = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "&lt;script&gt;alert(&#39;owned&#39;)&lt;/script&gt;" in page and "{{ 7 * 7 }}" in page
    assert "Seen &lt;b&gt;often&lt;/b&gt;." in page
    # characters that HTML forbids, and those that turn the direction of reading
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    assert "␀␁␛[31m" in page and "\ufffd321\ufffd" in page
    assert "1,000,000 characters" in page and len(page) < 1_500_000
    assert max(len(text) for text in re.findall(r"<pre[^>]*>(.*?)</pre>", page, flags=re.S)) < 6 * LONGEST_TEXT


def test_folders_without_an_evaluation_are_refused(evaluate, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "holds no finished evaluation, summary.json and samples.jsonl is missing" in told
    folder = evaluate([answer(0, i) for i in range(3)])
    (folder / "samples.jsonl").write_bytes(json_line(asdict(answer(benchmark="other"))))
    assert main(["report", str(folder)]) == 1
    assert "has no answers of own, which summary.json has figures of" in capsys.readouterr().err
    (folder / "summary.json").write_text("{")
    assert main(["report", str(folder)]) == 1
    assert "summary.json: not JSON" in capsys.readouterr().err


def test_examples_are_taken_at_even_distances():
    answers = [answer(0, i, outcome="right" if i % 2 else "wrong") for i in range(80)]
    picked = pick_examples(answers)
    assert list(picked) == ["right (40)", "wrong (40)"]
    assert [a.id for a in picked["right (40)"]] == ["own:11", "own:31", "own:51", "own:71"]
    assert len(picked["wrong (40)"]) == EXAMPLES
    only = pick_examples([answer(outcome="ungradable", finish_reason="length", extracted=None)])
    assert list(only) == ["truncated (1)", "ungradable (1)"]

"""Benchmarks: the real files, damaged files, tables of one's own, generated tasks."""

import json
import os
import re
from pathlib import Path

import pytest

from eval.benchmarks import TABLE, find_entry, fingerprint, load_benchmark, load_table
from eval.choice import score_choice
from eval.entries import DatasetEntry, GeneratedEntry
from eval.questions import Question
from rlhf.config.data import ARITHMETIC_HELD_OUT
from rlhf.config.sources import ConfigError
from rlhf.data import arithmetic, countdown, word_problems
from rlhf.data.errors import DataError
from rlhf.rewards import grade
from rlhf.rewards.scorers import score_arithmetic, score_countdown

DATA = Path(os.environ.get("RLHF_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


@pytest.fixture
def data() -> Path:
    for file in ("gsm8k/test.jsonl", "svamp/SVAMP.json"):
        if not (DATA / file).is_file():
            pytest.skip(f"there is no {DATA / file}: set RLHF_TEST_DATA")
    return DATA


def load(name, data_dir, limit=None, seed=0, extra_files=()):
    return load_benchmark(name, data_dir=data_dir, limit=limit, seed=seed, extra_files=extra_files)


# the real files


@pytest.mark.parametrize(("name", "rows"), [("gsm8k", 1319), ("svamp", 1000)])
def test_every_gold_of_the_real_file_is_read_and_graded(name, rows, data):
    benchmark = load(name, data)
    assert len(benchmark.questions) == rows
    assert [question.id for question in benchmark.questions] == [f"{name}:{number}" for number in range(rows)]
    for question in benchmark.questions:
        assert question.scorer == "math" and question.text
        assert grade(f"\\boxed{{{question.gold}}}", question.gold).outcome == "right", question
        assert grade(f"\\boxed{{{question.gold}1}}", question.gold).outcome == "wrong", question


def test_golds_agree_with_an_own_reading_of_the_files(data):
    rows = [json.loads(line) for line in (data / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()]
    for row, question in zip(rows, load("gsm8k", data).questions, strict=True):
        assert question.gold == re.search(r"#### (.*)$", row["answer"])[1].strip()
        assert question.text == row["question"].strip()
    rows = json.loads((data / "svamp/SVAMP.json").read_text(encoding="utf-8"))
    for row, question in zip(rows, load("svamp", data).questions, strict=True):
        assert float(question.gold) == row["Answer"] and not question.gold.endswith(".0")
        assert question.text == f"{row['Body']} {row['Question']}".strip() and question.subject == row["Type"]


def test_limit_takes_the_first_rows_and_changes_the_fingerprint(data):
    whole, part, again = load("gsm8k", data), load("gsm8k", data, limit=7), load("gsm8k", data, limit=7, seed=5)
    assert part.questions == whole.questions[:7] == again.questions
    assert part.fingerprint == again.fingerprint != whole.fingerprint
    assert load("gsm8k", data, limit=5000).questions == whole.questions


def test_the_fingerprint_depends_on_ids_texts_and_golds():
    one = [Question("a:0", "2 + 2?", "4")]
    prints = {fingerprint(one), fingerprint([Question("a:1", "2 + 2?", "4")]), fingerprint([]),
              fingerprint([Question("a:0", "2 + 3?", "4")]), fingerprint([Question("a:0", "2 + 2?", "5")])}  # fmt: skip
    assert len(prints) == 5
    assert fingerprint(one) == fingerprint([Question("a:0", "2 + 2?", "4", level="2", subject="sums")])


# damage


@pytest.fixture
def damaged(data, tmp_path):
    """GSM8K's test file after `change` was applied to its rows, in a folder of its own."""

    def write(change) -> Path:
        rows = [json.loads(line) for line in (data / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()]
        change(rows)
        file = tmp_path / "gsm8k" / "test.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(700), r"gsm8k: .*test\.jsonl has 1318 rows, and the whole set has 1319"),
        (lambda rows: rows.append(rows[0]), r"gsm8k: .*test\.jsonl has 1320 rows, and the whole set has 1319"),
        (
            lambda rows: rows[41].pop("answer"),
            r"test\.jsonl, line 42 \(row 41\), field 'answer': there is no such field; the row has question",
        ),
        (lambda rows: rows[9].pop("question"), r"line 10 \(row 9\), field 'question': there is no such field"),
        (lambda rows: rows[0].pop("question"), r"line 1 \(row 0\), field 'question': there is no such field"),
        (lambda rows: rows[3].update(answer="so 4\n####  "), r"line 4 .*field 'answer': the gold answer is empty"),
        (
            lambda rows: rows[3].update(answer="so 4"),
            r"line 4 .*field 'answer': the answer lacks the marker '####': 'so 4'",
        ),
        (lambda rows: rows[5].update(answer=None), r"line 6 .*field 'answer': is null"),
        (lambda rows: rows[5].update(answer=True), r"line 6 .*field 'answer': is of type bool"),
        (lambda rows: rows[5].update(question=" \n"), r"line 6 .*field 'question': the question is empty"),
        (lambda rows: rows[5].update(question={"a": 1}), r"line 6 .*field 'question': is of type dict"),
    ],
)
def test_damage_is_named_by_row_and_field(change, message, damaged):
    folder = damaged(change)
    # also where only the first rows are asked: a part of a damaged file is no benchmark
    for limit in (None, 2):
        with pytest.raises(DataError, match=message):
            load("gsm8k", folder, limit)


def test_a_file_that_is_not_there_says_what_was_looked_for(tmp_path):
    with pytest.raises(
        DataError, match=r"math500: none of its files is in .*: math500/test\.jsonl, .*or leave --data-"
    ):
        load("math500", tmp_path)


def test_an_unknown_benchmark_gets_neighbours_and_the_list():
    with pytest.raises(DataError, match=r"no benchmark 'gsm8' \(did you mean gsm8k\?\); there are: gsm8k, math500, "):
        load("gsm8", None)
    with pytest.raises(DataError, match=r"no benchmark 'xyz'; there are: gsm8k"):
        load("xyz", None)


# other forms of rows


def own(tmp_path, rows, entry) -> Path:
    """A table with the benchmark `mine` over `rows`."""
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["benchmarks:", "  mine:", f"    files: [{tmp_path / 'mine.jsonl'}]", *(f"    {line}" for line in entry)]
    (tmp_path / "table.yaml").write_text("\n".join(lines) + "\n")
    return tmp_path / "table.yaml"


def test_multiple_choice_shows_its_options_and_scores_letters(tmp_path):
    rows = [
        {"question": "What is 6 * 7?", "options": ["A)41", "B)42", "C)$43", "D)None of these"], "correct": "B"},
        {"question": "And 2 + 2?", "options": ["3", "4"], "correct": "(b)"},
    ]
    table = own(tmp_path, rows, ["question: question", "options: options", "answer: correct", "gold: choice"])
    first, second = load("mine", None, extra_files=[table]).questions
    assert first.text == "What is 6 * 7?\n(A) 41\n(B) 42\n(C) $43\n(D) None of these"
    assert (first.gold, first.scorer, first.columns) == (
        "B",
        "choice",
        {"options": ["41", "42", "$43", "None of these"]},
    )
    assert (second.gold, second.text) == ("B", "And 2 + 2?\n(A) 3\n(B) 4")
    assert score_choice("\\boxed{42}", first.gold, first.columns["options"]).outcome == "right"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": "E"}, r"line 1 \(row 0\), field 'correct': the right option 'E' is none of A, B"),
        ({"correct": " "}, r"field 'correct': the gold answer is empty"),
        ({"options": ["A)1", "C)2"]}, r"field 'options': the options' letters are A, C"),
        ({"options": ["A)1", "B) "]}, r"field 'options': option B is empty"),
        ({"options": "A)1 B)2"}, r"field 'options': must be a list of 2 to 26 options"),
    ],
)
def test_damaged_options_are_named(change, message, tmp_path):
    rows = [{"question": "?", "options": ["A)1", "B)2"], "correct": "B"} | change]
    table = own(tmp_path, rows, ["question: question", "options: options", "answer: correct", "gold: choice"])
    with pytest.raises(DataError, match=message):
        load("mine", None, extra_files=[table])


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("boxed", r"First \boxed{1}, then \boxed{\frac{3}{4}}.", r"\frac{3}{4}"),
        ("box_or_verbatim", r"It is \boxed{7}", "7"),
        ("box_or_verbatim", "7", "7"),
        ('{after: "####"}', "#### 1 #### 1,000", "1,000"),
        ('{before: "("}', "9 (apples)", "9"),
        ("verbatim", 51.0, "51"),
        ("verbatim", 0.5, "0.5"),
        ("verbatim", 12, "12"),
        ("verbatim", ["2", "$3$"], "2, $3$"),
    ],
)
def test_how_golds_are_taken(gold, answer, expected, tmp_path):
    table = own(tmp_path, [{"q": "?", "a": answer}], ["question: q", "answer: a", f"gold: {gold}"])
    assert [question.gold for question in load("mine", None, extra_files=[table]).questions] == [expected]


def test_a_gold_without_a_closed_box_is_named(tmp_path):
    rows = [{"q": "?", "a": r"\boxed{1}"}, {"q": "?", "a": r"\boxed{2"}]
    table = own(tmp_path, rows, ["question: q", "answer: a", "gold: boxed"])
    with pytest.raises(DataError, match=r"line 2 \(row 1\), field 'a': the answer has no closed \\boxed\{\}"):
        load("mine", None, extra_files=[table])


def test_spellings_templates_levels_and_rows_that_are_left_out(tmp_path):
    rows = [
        {"body": "Ann has 3 pens.", "ask": "How many?", "a": "3 (pens)", "level": 2},
        {"body": "Two answers.", "ask": "Which?", "a": "3 (boys); 4 (girls)", "level": 5},
        {"body": "Bob has 5.", "ask": "How many?", "a": "5", "level": "Level 1"},
    ]
    entry = ['question: [problem, "{body} {ask}"]', "answer: [answer, a]", 'gold: {before: "("}', 'leave_out: ";"',
             "level: level", "subject: topic", "rows: [2, 3]"]  # fmt: skip
    questions = load("mine", None, extra_files=[own(tmp_path, rows, entry)]).questions
    assert [(q.id, q.text, q.gold, q.level, q.subject) for q in questions] == [
        ("mine:0", "Ann has 3 pens. How many?", "3", "2", None),
        ("mine:2", "Bob has 5. How many?", "5", "Level 1", None),
    ]
    entry[0] = "question: [problem, prompt]"
    with pytest.raises(
        DataError, match=r"row 0.*mine wants a question in 'problem' or 'prompt', and the fields are a, ask"
    ):
        load("mine", None, extra_files=[own(tmp_path, rows, entry)])


def test_a_hub_set_is_read_over_several_splits(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        lines = [json.dumps({"Body": f"Ann has {n}.", "Question": "How many?", "Answer": float(n)}) for n in numbers]
        (tmp_path / "hub" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "table.yaml").write_text(
        f"benchmarks:\n  mine:\n    hub: {tmp_path / 'hub'}\n    split: train+test\n    rows: 3\n    answer: Answer\n"
        "    question: '{Body} {Question}'\n"
    )
    questions = load("mine", None, extra_files=[tmp_path / "table.yaml"]).questions
    assert [(q.id, q.text, q.gold) for q in questions] == [
        (f"mine:{n - 1}", f"Ann has {n}. How many?", str(n)) for n in (1, 2, 3)
    ]
    (tmp_path / "hub" / "test.jsonl").unlink()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache2")
    with pytest.raises(DataError, match=r"benchmark mine: data\.path = .*split 'train\+test'.* cannot be loaded"):
        load("mine", None, extra_files=[tmp_path / "table.yaml"])


# tables


def test_the_shipped_table_is_complete():
    table = load_table()
    assert set(table) >= {
        "gsm8k", "math500", "math", "aime24", "aime25", "amc23", "minerva_math", "olympiadbench", "olymmath_en_easy",
        "olymmath_en_hard", "svamp", "asdiv", "aqua", "gsm_symbolic", "arithmetic", "arithmetic-1", "arithmetic-5",
        "countdown", "word_problems", "word_problems-8",
    }  # fmt: skip
    for name, entry in table.items():
        assert entry.name == name and entry.title and entry.samples >= 1 and entry.caution
        if isinstance(entry, DatasetEntry):
            assert entry.hub and entry.files and entry.rows and entry.licence and entry.citation
            assert all(file.endswith((".jsonl", ".json", ".parquet")) for file in entry.files)
    # a set that swings needs more samples
    assert all(e.samples >= 8 for e in table.values() if isinstance(e, DatasetEntry) and max(e.rows) <= 100)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("question: q\n    answer: a", "mine: set hub or files"),
        ("files: [a.jsonl]\n    question: q", "mine: answer: Field required"),
        (
            "files: [a.jsonl]\n    question: q\n    answer: a\n    anser: b",
            "mine: anser: unknown key; did you mean answer?",
        ),
        (
            "files: [a.jsonl]\n    question: q\n    answer: a\n    gold: last",
            "mine: gold.rule = 'last': Input should be",
        ),
        ("files: [a.jsonl]\n    question: q\n    answer: a\n    gold: choice", "gold: choice and options go together"),
        ("files: [a.jsonl]\n    question: q\n    answer: a\n    rows: many", "mine: rows.0 = 'many'"),
        (
            "files: [a.jsonl]\n    question: '{q.x}'\n    answer: a",
            "write fields as {name}, and nothing else in braces",
        ),
        ("files: [a.jsonl]\n    question: '{q'\n    answer: a", "'{q' is not a template"),
        ("kind: made", "mine: kind = 'made': must be dataset or generated"),
        ("kind: generated\n    task: arithmetic\n    level: 6", "arithmetic has no level 6: 1 to 5"),
        ("kind: generated\n    task: arithmetic", "arithmetic needs a level"),
        ("kind: generated\n    task: chess", "mine: task = 'chess'"),
        (
            "name: other\n    files: [a.jsonl]\n    question: q\n    answer: a",
            "mine: name: the name is the key above it",
        ),
    ],
)
def test_a_bad_entry_is_named_with_file_and_line(entry, message, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(
        f"benchmarks:\n  good:\n    files: [g.jsonl]\n    question: q\n    answer: a\n  mine:\n    {entry}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_table(file)
    assert message in str(caught.value) and f"{file}:6: benchmark mine" in str(caught.value)
    assert "good" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gsm9k:\n  question: q\n", "must hold one key, `benchmarks:`"),
        ("benchmarks: [a]\n", "must hold one key, `benchmarks:`"),
        ("benchmarks:\n  mine: 5\n", "mine: must have fields"),
        ("benchmarks:\n  mine: {kind: [a]}\n", "mine: kind = ['a']: must be dataset or generated"),
        (
            "benchmarks:\n  a: {kind: generated, task: arithmetic, level: 2, levels: [2]}\n"
            "  a-2: {kind: generated, task: countdown}\n",
            "benchmark a-2 is made by `levels` of one entry and by another",
        ),
        ("benchmarks:\n  Mine Own:\n    files: [a.jsonl]\n    question: q\n    answer: a\n", "name = 'Mine Own'"),
        ("benchmarks:\n  mine: {\n", "not valid YAML"),
    ],
)
def test_a_bad_table_is_refused(text, message, tmp_path):
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_table(tmp_path / "my.yaml")
    with pytest.raises(ConfigError, match="there is no such benchmark file"):
        load_table(tmp_path / "none.yaml")


def test_a_name_of_the_shipped_table_cannot_be_taken(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("benchmarks:\n  gsm8k:\n    files: [a.jsonl]\n    question: q\n    answer: a\n")
    with pytest.raises(DataError, match="there already is a benchmark gsm8k: choose another name"):
        find_entry("math500", [file])
    assert find_entry("gsm8k") == load_table(TABLE)["gsm8k"]


# generated tasks


@pytest.mark.parametrize("level", range(1, 6))
def test_sums_are_the_held_out_ones_and_their_golds_are_right(level):
    size = 25 if level == 1 else 200
    questions = load(f"arithmetic-{level}", None).questions
    assert [q.text for q in questions] == [p.question for p in arithmetic.held_out_problems(level, size)]
    assert [q.id for q in questions] == [f"arithmetic-{level}:{number}" for number in range(size)]
    assert all(
        score_arithmetic(f"It is {q.gold}", q.gold).outcome == "right" and q.level == str(level) for q in questions
    )
    assert len(load(f"arithmetic-{level}", None, limit=10**6).questions) == ARITHMETIC_HELD_OUT[level]


def test_plain_names_of_generated_tasks():
    assert load("arithmetic", None).questions == load("arithmetic-2", None).questions
    questions = load("countdown", None, limit=30).questions
    assert [q.text for q in questions] == [p.question for p in countdown.held_out_problems(3, 20, 30)]
    for question in questions:
        verdict = score_countdown(f"\\boxed{{{question.gold}}}", **question.columns)
        assert verdict.outcome == "right" and question.scorer == "countdown"


def test_more_problems_than_there_are_is_an_error(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("benchmarks:\n  tiny: {kind: generated, task: countdown, numbers: 2, largest: 4}\n")
    with pytest.raises(DataError, match=r"benchmark tiny: .* has 2 held-out problems, and 200 are wanted.*--limit"):
        load("tiny", None, extra_files=[file])
    assert len(load("tiny", None, limit=2, extra_files=[file]).questions) == 2


def test_word_problems_by_steps_and_mixed():
    mixed, four = load("word_problems", None, limit=60).questions, load("word_problems-4", None, limit=60).questions
    assert {q.level for q in mixed} == set("2345678") and {q.level for q in four} == {"4"}
    assert mixed[0].id == "word_problems:0" and four[3].id == "word_problems-4:3"
    assert [q.text for q in four] == [p.question for p in word_problems.held_out_problems(60, steps=4)]
    assert all(grade(f"\\boxed{{{q.gold}}}", q.gold).outcome == "right" for q in mixed + four)


def test_a_seed_draws_other_problems_and_the_same_ones_again():
    one, other = load("word_problems", None, limit=20), load("word_problems", None, limit=20, seed=1)
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == load("word_problems", None, limit=20).fingerprint
    assert isinstance(one.entry, GeneratedEntry)

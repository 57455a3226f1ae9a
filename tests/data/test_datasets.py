"""Rows from files and from the `datasets` library; every error names file, row and field."""

import json
import re
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from rlhf.config.data import DatasetConfig
from rlhf.data.datasets import read_columns, read_prompt
from rlhf.data.errors import DataError
from rlhf.data.rows import read_rows

CHAT = [{"role": "user", "content": "2 + 2?"}]


def read(path: str, **settings):
    config = DatasetConfig(path=str(path), **settings)
    return [(row.id, read_prompt(row, config), dict(read_columns(row, config))) for row in read_rows(config)]


EXPECTED = [
    ("set-train:0", "What is 1 + 1?", {"level": 1, "answer": "2"}),
    ("set-train:1", "What is 2 + 2?", {"level": 2, "answer": "4"}),
]
ROWS = [{"prompt": text, **columns} for _, text, columns in EXPECTED]


def test_jsonl_json_and_parquet_hold_the_same_rows(tmp_path: Path, write_jsonl):
    jsonl = write_jsonl([ROWS[0], "\n", ROWS[1]])
    (tmp_path / "set/train.json").write_text(json.dumps(ROWS))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "set/train.parquet")
    for path in (jsonl, tmp_path / "set/train.json", tmp_path / "set/train.parquet"):
        assert read(path, answer_field="answer") == EXPECTED


def test_conversations_from_jsonl_and_parquet(tmp_path: Path, write_jsonl):
    rows = [
        {"prompt": CHAT, "answer": 4},
        {"prompt": [{"role": "tool", "content": "4", "name": "add"}], "answer": 4},
    ]
    expected = [("set-train:0", CHAT, {"answer": "4"}), ("set-train:1", rows[1]["prompt"], {"answer": "4"})]
    assert read(write_jsonl(rows), answer_field="answer") == expected
    # parquet gives every message the key `name`
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "set/train.parquet")
    assert read(tmp_path / "set/train.parquet", answer_field="answer") == expected


def test_a_glob_reads_files_in_order_and_ids_follow_the_file(tmp_path: Path, write_jsonl):
    for name in ("b", "a"):
        write_jsonl([{"prompt": f"{name}{i}"} for i in range(2)], f"set/{name}.jsonl")
    rows = read(str(tmp_path / "set/*.jsonl"))
    assert [(prompt_id, text) for prompt_id, text, _ in rows] == [
        ("set-a:0", "a0"), ("set-a:1", "a1"), ("set-b:0", "b0"), ("set-b:1", "b1")
    ]  # fmt: skip


def test_files_that_would_share_ids_are_told_apart(tmp_path: Path, write_jsonl):
    for name in ("x/set/a.jsonl", "y/set/a.jsonl"):
        write_jsonl([{"prompt": "p"}], name)
    ids = [prompt_id for prompt_id, _, _ in read(str(tmp_path / "*/set/a.jsonl"))]
    assert len(set(ids)) == 2 and ids[0].endswith("x/set/a.jsonl:0")


def test_a_name_with_the_signs_of_a_pattern_is_a_file(write_jsonl):
    assert read(write_jsonl([{"prompt": "p"}], "set/a[1].jsonl"))[0][0] == "set-a[1]:0"


@pytest.mark.parametrize(("split", "numbers"), [("train[2:4]", [2, 3]), ("train[:20%]", [0, 1]), ("train[-1:]", [9])])
def test_a_part_of_a_local_file_keeps_row_numbers(write_jsonl, split, numbers):
    path = write_jsonl([{"prompt": str(i)} for i in range(10)])
    assert read(path, split=split) == [(f"set-train:{i}", str(i), {}) for i in numbers]


def test_the_datasets_library_loads_what_is_not_a_file(tmp_path: Path, write_jsonl, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_jsonl(ROWS, "hub/train.jsonl")
    write_jsonl([ROWS[1]], "hub/test.jsonl")
    path = str(tmp_path / "hub")
    assert [row[0] for row in read(path)] == ["hub-train:0", "hub-train:1"]
    assert read(path, split="test", answer_field="answer") == [("hub-test:0", *EXPECTED[1][1:])]
    assert read(path, split="train[1:]") == [("hub-train[1:]:0", *EXPECTED[1][1:])]
    with pytest.raises(DataError, match=r"hub, subset None, split 'dev'.*Unknown split"):
        read(path, split="dev")
    with pytest.raises(DataError, match=r"split test, row 0, field 'q': there is no such field.*answer, level, prompt"):
        read(path, split="test", prompt_field="q")


def test_gold_is_what_follows_the_last_marker_as_written(write_jsonl):
    path = write_jsonl(["", {"q": "?", "prompt": "kept", "answer": "#### 1 is wrong\n####  1,234,000 "}])
    ((_, prompt, columns),) = read(path, prompt_field="q", answer_field="answer", answer_after="####")
    assert prompt == "?" and columns == {"prompt": "kept", "answer": "1,234,000"}


@pytest.mark.parametrize(("value", "gold"), [(7, "7"), (51.0, "51.0"), (" x^2 ", "x^2"), (-0.5, "-0.5"), (0, "0")])
def test_numbers_are_gold_answers_too(write_jsonl, value, gold):
    path = write_jsonl([{"prompt": "p", "solution": value, "answer": "working"}])
    assert read(path, answer_field="solution")[0][2] == {"solution": value, "answer": gold}


def test_prompt_template_replaces_nothing_but_the_prompt(write_jsonl):
    path = write_jsonl([{"prompt": "Solve {x} {prompt}."}])
    assert read(path, prompt_template="{prompt}\n\\boxed{} {y}")[0][1] == "Solve {x} {prompt}.\n\\boxed{} {y}"


GOOD = {"prompt": "p", "answer": "a #### 1"}


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        (
            {"question": "q"},
            {},
            "field 'prompt': there is no such field: set data.prompt_field to one of its fields: que",
        ),
        ({"prompt": None}, {}, "field 'prompt': is null"),
        ({"prompt": 3}, {}, "field 'prompt': the prompt is of type int, and must be text or a list"),
        ({"prompt": " \n"}, {}, "field 'prompt': the prompt is empty"),
        ({"prompt": []}, {}, "field 'prompt': the conversation has no messages"),
        ({"prompt": [{"role": "bot", "content": "x"}]}, {}, "field 'prompt', message 0: role is 'bot'"),
        ({"prompt": CHAT}, {"prompt_template": "Q: {prompt}"}, "field 'prompt': data.prompt_template is for string"),
        ({"prompt": "p"}, {"answer_field": "answer"}, "field 'answer': there is no such field: set data.answer_field"),
        ({"prompt": "p", "answer": None}, {"answer_field": "answer"}, "field 'answer': is null"),
        ({"prompt": "p", "answer": " "}, {"answer_field": "answer"}, "field 'answer': the answer is empty"),
        ({"prompt": "p", "answer": [1]}, {"answer_field": "answer"}, "field 'answer': the answer is of type list"),
        ({"prompt": "p", "answer": True}, {"answer_field": "answer"}, "field 'answer': the answer is of type bool"),
        ('{"prompt": "p", "answer": NaN}\n', {"answer_field": "answer"}, "field 'answer': the answer is nan"),
        (
            {"prompt": "p", "answer": "so 7"},
            {"answer_field": "answer", "answer_after": "####"},
            "field 'answer': the answer lacks the marker '####' of data.answer_after: 'so 7'",
        ),
        (
            {"prompt": "p", "answer": "so ####\n"},
            {"answer_field": "answer", "answer_after": "####"},
            "field 'answer': the answer is empty after '####'",
        ),
        ('{"prompt": "p",\n', {}, "is not JSON in UTF-8"),
        ("[1, 2]\n", {}, "is of type list, and must be an object"),
    ],
)
def test_bad_rows_are_named_with_file_line_and_field(write_jsonl, row, settings, message):
    path = write_jsonl([GOOD, "\n", row, GOOD])
    with pytest.raises(DataError) as caught:
        read(path, **settings)
    # the blank second line counts as a line and not as a row
    assert re.match(rf"^{re.escape(path)}, line 3( \(row 1\))?(: |, ){re.escape(message)}", str(caught.value))


def test_bytes_that_are_not_text_are_named(tmp_path: Path):
    file = tmp_path / "latin.jsonl"
    file.write_bytes(b'{"prompt": "ok"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl, line 2: is not JSON in UTF-8"):
        read(str(file))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b'{"data": []}', "x.json", "must hold one list of objects"),
        (b'[{"prompt": "p"}, 3]', "x.json", "x.json, row 1: is of type int"),
        (b"[", "x.json", "is not JSON"),
        (b"PAR1 no", "x.parquet", "is not a readable parquet file"),
        (b"\n\n", "x.jsonl", "there are no rows"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content, name, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(str(tmp_path / name))
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "test"}, "data.split = 'test': a local file has no splits"),
        ({"subset": "main"}, "data.subset is for datasets of the hub"),
        ({"revision": "abc"}, "data.revision is for datasets of the hub"),
    ],
)
def test_hub_settings_on_a_local_file_are_refused(write_jsonl, settings, message):
    with pytest.raises(DataError, match=message):
        read(write_jsonl(ROWS), **settings)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none-\*\.jsonl: there is no such file"):
        read(str(tmp_path / "none-*.jsonl"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"prompt_template": "Q:"}, "has no place for the prompt"), ({"answer_after": "####"}, "set answer_field")],
)
def test_the_configuration_is_refused_before_anything_is_read(settings, message):
    with pytest.raises(ValueError, match=message):
        DatasetConfig(path="x.jsonl", **settings)

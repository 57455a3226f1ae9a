"""Which benchmarks there are (`benchmarks.yaml`, and files of the user's own), and their questions.

The row count is checked on the whole set, then `limit` takes the first rows: a cut or foreign file cannot pass for a
benchmark because only a part of it is used.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eval import golds
from eval.entries import DatasetEntry, Entry, GeneratedEntry
from eval.questions import Question
from rlhf.config.data import ARITHMETIC_HELD_OUT, DatasetConfig
from rlhf.config.problems import unknown_keys
from rlhf.config.sources import ConfigError, read_yaml
from rlhf.data import arithmetic, countdown, word_problems
from rlhf.data.errors import DataError
from rlhf.data.generated import Problem
from rlhf.data.rows import Rows, read_rows

TABLE = Path(__file__).with_name("benchmarks.yaml")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's questions; `fingerprint` is a hash over their ids, texts and gold answers."""

    entry: Entry
    questions: list[Question]
    fingerprint: str


def load_table(path: Path = TABLE) -> dict[str, Entry]:
    """The entries of one file by name, each level of a generated task on its own.

    Raises ConfigError with one sentence for each problem, naming file, line and entry.
    """
    if not Path(path).is_file():
        raise ConfigError([f"{path}: there is no such benchmark file"])
    content, places = read_yaml(str(path))
    raw = content.get("benchmarks")
    if not isinstance(raw, dict) or set(content) != {"benchmarks"}:
        raise ConfigError([f"{path}: must hold one key, `benchmarks:`, with an entry a name; see {TABLE}"])
    table: dict[str, Entry] = {}
    problems: list[str] = []
    for name, tree in raw.items():
        entry = _read_entry(name, tree, places.get(("benchmarks", name), str(path)), problems)
        for one in [] if entry is None else _levels(entry):
            if one.name in table:
                problems.append(
                    f"{path}: benchmark {one.name} is made by `levels` of one entry and by another: rename it"
                )
            table[one.name] = one
    if problems:
        raise ConfigError(problems)
    return table


def _read_entry(name: Any, tree: Any, place: str, problems: list[str]) -> Entry | None:
    where = f"{place}: benchmark {name}"
    if not isinstance(tree, dict):
        problems.append(f"{where}: must have fields (title, question, answer, ...)")
        return None
    kind = tree.get("kind", "dataset")
    schema = {"dataset": DatasetEntry, "generated": GeneratedEntry}.get(str(kind))
    if schema is None:
        problems.append(f"{where}: kind = {kind!r}: must be dataset or generated")
        return None
    if "name" in tree:
        problems.append(f"{where}: name: the name is the key above it: remove it")
    found = [f"{where}: {sentence}" for sentence in unknown_keys(schema, tree, {})]
    try:
        entry = schema.model_validate({**tree, "name": str(name)})
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] != "extra_forbidden":
                path = ".".join(str(part) for part in detail["loc"])
                value = "" if detail["type"] == "missing" or not path else f" = {detail['input']!r}"
                found.append(f"{where}: {path}{value}{': ' * bool(path)}{detail['msg'].removeprefix('Value error, ')}")
        entry = None
    problems += found
    return entry


def _levels(entry: Entry) -> list[Entry]:
    if not isinstance(entry, GeneratedEntry):
        return [entry]
    one = entry.model_copy(update={"levels": ()})
    return [one] + [
        one.model_copy(
            update={"name": f"{entry.name}-{level}", "title": f"{entry.title}, level {level}", "level": level}
        )
        for level in entry.levels
    ]


def find_entry(name: str, extra_files: Sequence[Path] = ()) -> Entry:
    """The entry called `name`. Raises DataError for an unknown name or one that two files have, ConfigError for a bad
    file."""
    table = load_table()
    for file in extra_files:
        more = load_table(file)
        twice = sorted(set(table) & set(more))
        if twice:
            raise DataError(
                f"{file}: there already is a benchmark {twice[0]}: choose another name, so that results agree"
            )
        table |= more
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=3)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise DataError(f"there is no benchmark {name!r}{hint}; there are: {', '.join(table)}")


def load_benchmark(
    name: str, *, data_dir: Path | None, limit: int | None, seed: int, extra_files: Sequence[Path] = ()
) -> Benchmark:
    """The questions of the benchmark `name`.

    `data_dir` holds the benchmarks' files; None reads the hub. `limit` takes the first rows; of a generated task it is
    the number of problems. `seed` draws a generated task's problems and leaves datasets alone: runs that are compared
    need the same.

    Raises DataError (file, row and field in the message) where the benchmark is unknown, its file is missing, has
    another number of rows than published, or a row lacks a field or a gold answer; ConfigError for a bad table.
    """
    entry = find_entry(name, extra_files)
    if isinstance(entry, GeneratedEntry):
        questions = _generate(entry, limit, seed)
    else:
        rows = _rows(entry, data_dir)
        _check_count(entry, rows)
        questions = golds.read_questions(entry, rows)[:limit]
    return Benchmark(entry, questions, fingerprint(questions))


def fingerprint(questions: Sequence[Question]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for question in questions:
        digest.update(json.dumps([question.id, question.text, question.gold]).encode() + b"\n")
    return digest.hexdigest()


def _rows(entry: DatasetEntry, data_dir: Path | None) -> Rows:
    path, from_hub = entry.hub, {"subset": entry.subset, "split": entry.split, "revision": entry.revision}
    if data_dir is not None or entry.hub is None:
        folder = Path(data_dir or ".").expanduser()
        there = [folder / file for file in entry.files if (folder / file).is_file()]
        if not there:
            raise DataError(
                f"benchmark {entry.name}: none of its files is in {folder}: {', '.join(entry.files)}"
                + (f"; put one there, or leave --data-dir out to read {entry.hub} from the hub" if entry.hub else "")
            )
        path, from_hub = str(there[0]), {}
    try:
        return read_rows(DatasetConfig(path=path, **from_hub))
    except DataError as error:
        can_be_local = from_hub and entry.files
        hint = f"; without a network, put {entry.files[0]} into a folder and give --data-dir" if can_be_local else ""
        raise DataError(f"benchmark {entry.name}: {error}{hint}") from error


def _check_count(entry: DatasetEntry, rows: Rows) -> None:
    if entry.rows and len(rows) not in entry.rows:
        source = rows[0].place.rpartition(", ")[0]
        raise DataError(
            f"benchmark {entry.name}: {source} has {len(rows)} rows, and the whole set has "
            f"{' or '.join(map(str, entry.rows))}: rows are missing or added, or it is another set: get it anew "
            "(to ask only a part, use --limit)"
        )


def _generate(entry: GeneratedEntry, limit: int | None, seed: int) -> list[Question]:
    size = limit or entry.size
    if entry.task == "arithmetic":
        size = min(size, ARITHMETIC_HELD_OUT[entry.level])
    try:
        problems = _held_out(entry, size, seed)
    except DataError as error:
        raise DataError(f"benchmark {entry.name}: {error} (here: --limit)") from error
    family = entry.task if entry.level is None else f"{entry.task}-{entry.level}"
    return [_question(entry, f"{family}:{number}", problem) for number, problem in enumerate(problems)]


def _held_out(entry: GeneratedEntry, size: int, seed: int) -> list[Problem]:
    if entry.task == "arithmetic":
        return arithmetic.held_out_problems(entry.level, size, seed)
    if entry.task == "countdown":
        return countdown.held_out_problems(entry.numbers, entry.largest, size, seed)
    return word_problems.held_out_problems(size, seed, entry.level)


def _question(entry: GeneratedEntry, question_id: str, problem: Problem) -> Question:
    columns: Mapping[str, Any] = problem.columns
    level = columns.get("steps", entry.level)
    return Question(
        question_id,
        problem.question,
        columns["answer"],
        "math" if entry.task == "word_problems" else entry.task,
        {name: value for name, value in columns.items() if name != "answer"},
        None if level is None else str(level),
    )

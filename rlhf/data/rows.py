"""Where rows come from: local jsonl, json and parquet files, or the hub. Each row knows its place, for messages."""

import glob
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from rlhf.config.data import RowsConfig
from rlhf.data.errors import DataError

SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `id` is stable: `<dataset>-<split>:<row>`, or `<folder>-<file>:<row>` for a local file."""

    id: str
    place: str
    fields: Mapping[str, Any]

    def at(self, field: str) -> str:
        """Where a field stands, for messages."""
        return f"{self.place}, field {field!r}"


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one file or of one split; `lines` are their line numbers (from 1) in a jsonl file."""

    name: str
    label: str
    rows: Sequence[Mapping[str, Any]]
    lines: Sequence[int] | None = None

    def row(self, index: int) -> Row:
        line = f"line {self.lines[index]} (row {index})" if self.lines is not None else f"row {index}"
        return Row(f"{self.name}:{index}", f"{self.label}, {line}", self.rows[index])


class Rows(Sequence[Row]):
    """Tables one after the other, of which the rows from `start` to `stop` are taken."""

    def __init__(self, tables: Sequence[Table], start: int = 0, stop: int | None = None):
        self._tables = tables
        self._ends = list(accumulate(len(table.rows) for table in tables))
        self._range = range(self._ends[-1])[start:stop]

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        position = self._range[index]
        table = bisect_right(self._ends, position)
        return self._tables[table].row(position - (self._ends[table - 1] if table else 0))

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


def read_rows(config: RowsConfig) -> Rows:
    """All rows of a dataset. Raises DataError where there are none, or they cannot be read."""
    rows = _read_local(config) if config.path.endswith(SUFFIXES) else _read_hub(config)
    if not len(rows):
        raise DataError(f"data.path = {config.path}, split {config.split!r}: there are no rows")
    return rows


def _read_local(config: RowsConfig) -> Rows:
    for name in ("subset", "revision"):
        if getattr(config, name) is not None:
            raise DataError(f"data.{name} is for datasets of the hub, and {config.path} is a local file: remove it")
    path = Path(config.path).expanduser()
    # a file may have the signs of a pattern in its name
    files = [path] if path.exists() else sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    if not files:
        raise DataError(f"data.path = {config.path}: there is no such file (looked in {Path.cwd()})")
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}
    tables = [readers[file.suffix](file, name) for file, name in zip(files, _names(files), strict=True)]
    return Rows(tables, *_slice(config, sum(len(table.rows) for table in tables)))


def _names(files: Sequence[Path]) -> list[str]:
    """`gsm8k-train` for `.../gsm8k/train.jsonl`; the whole path where that would name two files."""
    short = [f"{file.absolute().parent.name}-{file.stem}" for file in files]
    return short if len(set(short)) == len(short) else [str(file) for file in files]


def _slice(config: RowsConfig, length: int) -> tuple[int, int]:
    """`train[:1000]` and its like, as the `datasets` library reads them; a local file's only split is `train`."""
    if config.split == "train":
        return 0, length
    from datasets import ReadInstruction

    try:
        (part,) = ReadInstruction.from_spec(config.split).to_absolute({"train": length})
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"data.split = {config.split!r}: a local file has no splits. Leave data.split out, or take a part of the "
            "rows with e.g. train[:1000] or train[10%:20%]"
        ) from error
    return part.from_ or 0, length if part.to is None else part.to


def _read_jsonl(file: Path, name: str) -> Table:
    rows, lines = [], []
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                rows.append(_object(line, f"{file}, line {number}"))
                lines.append(number)
    return Table(name, str(file), rows, lines)


def _object(line: bytes, place: str) -> dict[str, Any]:
    row = _parse(line, place)
    if not isinstance(row, dict):
        raise DataError(f"{place}: is of type {type(row).__name__}, and must be an object with fields")
    return row


def _parse(content: bytes, place: str) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not JSON in UTF-8: {error}") from error


def _read_json(file: Path, name: str) -> Table:
    rows = _parse(file.read_bytes(), str(file))
    if not isinstance(rows, list):
        raise DataError(f"{file}: must hold one list of objects; for one object a line, end its name in .jsonl")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{file}, row {number}: is of type {type(row).__name__}, and must be an object with fields")
    return Table(name, str(file), rows)


def _read_parquet(file: Path, name: str) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        # ParquetFile reads this one file; read_table would add columns from folder names such as year=2024
        rows = parquet.ParquetFile(file).read().to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: is not a readable parquet file: {error}") from error
    return Table(name, str(file), rows)


def _read_hub(config: RowsConfig) -> Rows:
    import datasets

    try:
        table = datasets.load_dataset(config.path, config.subset, split=config.split, revision=config.revision)
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        raise DataError(
            f"data.path = {config.path}, subset {config.subset!r}, split {config.split!r}, revision "
            f"{config.revision!r} cannot be loaded: {error}. A local file must end in {', '.join(SUFFIXES)}"
        ) from error
    return Rows([Table(f"{Path(config.path).name}-{config.split}", f"{config.path}, split {config.split}", table)])

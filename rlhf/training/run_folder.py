"""The folder of a run: what is written where, so that a kill loses at most one torn line and a resume repeats nothing.

    runs/<name>/
      config.yaml         the resolved config         environment.json   versions, machine, git state
      metrics.jsonl       one line per step           samples.jsonl      one line per sample
      evaluations.jsonl   one line per evaluation     memory_plan.json   planned and measured bytes
      dumps/              what a guard stopped on     checkpoints/       state for resume
      report.html         what people read            model/             the exported checkpoint
      tables.json         what an algorithm adds to the report

One process writes (the main one). Lines are JSON, appended with a single write each time.
"""

import contextlib
import errno
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.data.types import Sample

NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""JSON has no such numbers; they are written as these strings."""


class RunFolderError(OSError):
    """A file of the run could not be written; the message has the path, the reason and the free space."""


class RunFolder:
    """Reads and writes the files of one run under `path`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.evaluations = self.path / "evaluations.jsonl"
        self.memory_plan = self.path / "memory_plan.json"
        self.tables = self.path / "tables.json"
        self.dumps = self.path / "dumps"
        self.checkpoints = self.path / "checkpoints"
        self.report = self.path / "report.html"
        self.model = self.path / "model"

    @property
    def used(self) -> bool:
        """Whether an earlier run left a config, lines or checkpoints here."""
        files = (self.config, self.metrics, self.samples, self.evaluations)
        return any(f.exists() for f in files) or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))

    def create(self, config_yaml: str, resume: bool) -> None:
        """Make the folder and write the resolved config.

        Raises FileExistsError when the folder is used and `resume` is False (`run.resume: never`). When a resumed run's
        config differs from the earlier one, the earlier one is kept as `config.before-<n>.yaml`.
        """
        if self.used and not resume:
            raise FileExistsError(
                f"{self.path} holds an earlier run and run.resume is 'never': choose another run.name, "
                "set run.resume: auto to continue it, or move the folder away"
            )
        with _explained(self.path):
            for folder in (self.path, self.dumps, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            # A run that was killed inside a line must not have its next line glued to the torn one.
            self.truncate_after(sys.maxsize)
            if self.config.exists() and self.config.read_text(encoding="utf-8") != config_yaml:
                number = 1 + len(list(self.path.glob("config.before-*.yaml")))
                os.replace(self.config, self.path / f"config.before-{number}.yaml")
        write_atomically(self.config, [config_yaml.encode()])

    def write_environment(self, description: Mapping[str, Any]) -> None:
        """Write environment.json; a resumed run's environment is added under `resumed` beside the first one."""
        record = dict(description)
        if self.environment.exists():
            record = json.loads(self.environment.read_text(encoding="utf-8"))
            record.setdefault("resumed", []).append(dict(description))
        write_atomically(self.environment, [json.dumps(plain(record), indent=2).encode()])

    def write_memory_plan(self, items: Sequence[tuple[str, int]], measured_peak_bytes: int | None = None) -> None:
        """Write memory_plan.json: planned bytes by name, their total, and the measured peak once it is known."""
        record = {"items": [[name, int(size)] for name, size in items], "total_bytes": sum(int(s) for _, s in items),
                  "measured_peak_bytes": measured_peak_bytes}
        write_atomically(self.memory_plan, [json.dumps(record, indent=2).encode()])

    def write_tables(self, tables: Sequence[Mapping[str, Any]]) -> None:
        """Write tables.json: what an algorithm shows in the report, each with title, caption, header and rows."""
        write_atomically(self.tables, [json.dumps(plain(list(tables)), indent=1).encode()])

    def explain_export(self, text: str) -> str:
        """Write `text` beside the exported model, for those who find it without the run; returns the text."""
        write_atomically(self.model / "README.md", [f"{text}.\n".encode()])
        return text

    def append_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line: the step and its metrics. Non-finite numbers become `"nan"`, `"inf"`, `"-inf"`."""
        self._append(self.metrics, [_stamped(step, metrics)])

    def append_evaluation(self, step: int, values: Mapping[str, Any]) -> None:
        """One line, as an `Evaluator` describes it."""
        self._append(self.evaluations, [_stamped(step, values)])

    def append_samples(self, step: int, samples: Sequence[Sample], token_ids: bool = False) -> None:
        """One line per sample, all in one write; with `token_ids` the prompt's and the completion's ids too."""
        self._append(self.samples, [sample_record(step, sample, token_ids) for sample in samples])

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines in file order, non-finite numbers as floats again."""
        return [{k: number(v) for k, v in record.items()} for record in read_lines(self.metrics)]

    def read_evaluations(self) -> list[dict[str, Any]]:
        """All whole lines in file order, non-finite numbers as floats again."""
        lines = read_lines(self.evaluations)
        return [{k: v if k == "name" else number(v) for k, v in record.items()} for record in lines]

    def read_samples(self) -> Iterator[dict[str, Any]]:
        """The whole lines, one at a time: the file may be larger than memory."""
        return read_lines(self.samples)

    def truncate_after(self, step: int) -> None:
        """Drop lines of later steps, and torn last lines, so that a resumed run's files equal an unbroken run's.

        Kept lines keep their bytes. -1 drops all (a start without a checkpoint). Files are replaced atomically, so a
        kill in here is repaired by calling it again.
        """
        for path in (self.metrics, self.samples, self.evaluations):
            if path.exists():
                _keep_lines(path, lambda record: record["step"] <= step)

    def sync(self) -> None:
        """Force the line files to disk; call before a checkpoint, which promises that all lines up to it exist."""
        for path in (self.metrics, self.samples, self.evaluations):
            if path.exists():
                with _explained(path), path.open("rb") as file:
                    os.fsync(file.fileno())

    def _append(self, path: Path, records: list[dict[str, Any]]) -> None:
        if not records:
            return
        data = b"".join(json_line(record) for record in records)
        with _explained(path):
            # O_APPEND and one write: no buffer of ours can lose an earlier line or split this one in two places.
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(file).st_size
                try:
                    _write_all(file, data)
                except OSError:
                    # A full disk may take half a line; the file must stay readable when the run is resumed.
                    with contextlib.suppress(OSError):
                        os.ftruncate(file, size)
                    raise
            finally:
                os.close(file)


def _stamped(step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    if values.get("step", step) != step:
        raise ValueError(f"a line of step {step} has another step inside it: {values['step']!r}")
    return {"step": step, **values}


def sample_record(step: int, sample: Sample, token_ids: bool = False) -> dict[str, Any]:
    """The line of one sample in samples.jsonl."""
    verdict = sample.verdict
    record: dict[str, Any] = {
        "step": step,
        "prompt_id": sample.prompt.id,
        "index": sample.index,
        "seed": sample.seed,
        "policy_version": sample.policy_version,
        "prompt": sample.prompt.text,
        "completion": sample.text,
        "completion_tokens": len(sample.completion_ids),
        "finish_reason": sample.finish_reason,
        "rewards": dict(sample.rewards),
        "reward": sample.reward,
        "outcome": verdict.outcome if verdict else None,
        "extracted": verdict.extracted if verdict else None,
        "reason": verdict.reason if verdict else "",
        "timed_out": verdict.timed_out if verdict else False,
    }
    if sample.turns:
        record |= {"turns": sample.turns, "turn_rewards": sample.turn_rewards, "messages": sample.messages}
    if token_ids:
        record["prompt_token_ids"] = list(sample.prompt.token_ids)
        record["completion_token_ids"] = list(sample.completion_ids)
    return record


def plain(value: Any) -> Any:
    """`value` as JSON types: non-finite floats as strings, numpy and torch scalars as numbers; else TypeError."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        return plain(value.item())
    raise TypeError(f"cannot record a {type(value).__name__} ({value!r}): metrics are numbers or text")


def number(value: Any) -> Any:
    """The float behind `"nan"`, `"inf"` and `"-inf"`; anything else as it is."""
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def json_line(record: Mapping[str, Any]) -> bytes:
    """One line of UTF-8 JSON. A lone surrogate in a model's text becomes its JSON escape and is read back as it was."""
    return json.dumps(plain(record), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file that may not exist; a torn last line is left out.

    Raises ValueError with the line's number for a damaged line anywhere else: that is not a kill's doing.
    """
    if path.exists():
        for _, record in _whole_lines(path):
            yield record


def write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    """Write beside `path`, force to disk, rename over it: readers see the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with _explained(path):
        with temporary.open("wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    kept_bytes = sum(len(line) for line, record in _whole_lines(path) if keep(record))
    if kept_bytes != path.stat().st_size:
        write_atomically(path, (line for line, record in _whole_lines(path) if keep(record)))


def _whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    with path.open("rb") as file:
        for index, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                message = f"{path}, line {index} is damaged ({error}): restore the file or remove the line"
                raise ValueError(message) from error
            yield line, record


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view):]


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = next(p for p in (path, *path.absolute().parents) if p.exists())
        free = shutil.disk_usage(place).free
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space, then resume the run" if full else "check the path, its permissions and its disk"
        message = f"cannot write {path}: {error.strerror or error} ({free / 2**20:,.0f} MiB free there); {remedy}"
        raise RunFolderError(error.errno or errno.EIO, message, str(path)) from error

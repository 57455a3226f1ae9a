"""The HTML report of an evaluation: one file for a person who decides whether its numbers can be trusted.

`python -m eval report FOLDER` writes it again from summary.json and samples.jsonl, which hold all that it shows.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from eval.charts import draw_all
from eval.compare import read_answers
from eval.intervals import Estimate
from eval.metrics import powers_of_two
from eval.questions import Answer
from eval.report_checks import checks
from rlhf.training.progress import duration
from rlhf.training.report.charts import Drawing
from rlhf.training.report.page import write_page

Record = Mapping[str, Any]

SUMMARY, SAMPLES, REPORT = "summary.json", "samples.jsonl", "report.html"
NOT_SHARES = ("mean tokens",)
EXAMPLES = 4
"""Completions shown of each outcome."""
LONGEST_TABLE = 8
"""With more samples a question, pass@k is folded away for the k that are no powers of two."""

MEANINGS = {
    "accuracy": "questions whose completion is right",
    "avg@": "right samples of a question, averaged over questions",
    "pass@": "at least one of k samples is right",
    "maj@": "the answer that most of the first k samples give is right",
    "best-of-": "of the first k samples, the one with the highest score is right",
    "mean tokens": "length of a completion",
    "truncated": "samples cut off at the token limit",
    "no answer": "samples in which no answer was found",
    "ungradable": "samples that the grader could call neither right nor wrong",
    "timed out": "samples that the grader gave up on, a part of the ungradable",
}
"""By a figure's name, or what its name begins with."""

OUTCOMES: dict[str, Callable[[Answer], bool]] = {
    "right": lambda a: a.outcome == "right",
    "wrong": lambda a: a.outcome == "wrong",
    "no answer": lambda a: a.extracted is None and a.outcome != "ungradable",
    "truncated": lambda a: a.finish_reason == "length",
    "ungradable": lambda a: a.outcome == "ungradable",
}
"""What a completion can be an example of; a truncated one is right or wrong, too."""

KEY_SETTINGS = {
    "model": "model", "revision": "revision", "adapter": "peft", "precision": "dtype", "engine": "engine",
    "template": "template", "worked examples": "shots", "samples a question": "samples", "temperature": "temperature",
    "top-p": "top_p", "top-k": "top_k", "longest completion": "max_tokens", "first questions only": "limit",
    "seed": "seed",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One figure of the table, as text; `estimate` where it is a share, which has a place between 0 and 1."""

    name: str
    meaning: str
    value: str
    interval: str
    count: str
    estimate: Estimate | None
    is_folded: bool


@dataclass(frozen=True)
class Section:
    """What the page shows of one benchmark."""

    name: str
    about: Record
    headline: Row
    counts: Record
    rows: list[Row]
    drawings: list[Drawing]
    examples: dict[str, list[Answer]]


def write_report(folder: Path) -> Path:
    """Write `report.html` from the folder's summary.json and samples.jsonl, and return its path.

    Raises FileNotFoundError where the folder holds no finished evaluation, ValueError for a file that cannot be read or
    that is not of this evaluation, RunFolderError where the report cannot be written.
    """
    folder = Path(folder)
    missing = [name for name in (SUMMARY, SAMPLES) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} holds no finished evaluation, {' and '.join(missing)} is missing: give the folder that "
            "`python -m eval run` wrote, or run it again to finish it"
        )
    return write_page(folder / REPORT, Path(__file__).with_name("report.html.j2"), collect(folder))


def collect(folder: Path) -> dict[str, Any]:
    """Everything the template shows; text of models and data sets stays plain here and is escaped by the template."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / SUMMARY}: not JSON ({error}): run the evaluation again to write it") from error
    answers = read_answers(folder / SAMPLES)
    if absent := [name for name in summary["benchmarks"] if name not in answers]:
        raise ValueError(f"{folder / SAMPLES} has no answers of {', '.join(absent)}, which {SUMMARY} has figures of")
    settings = summary["settings"]
    return {
        "title": Path(settings["model"].removeprefix("embedded:")).name or settings["model"],
        "subtitle": _subtitle(settings),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "interval": "Wilson" if settings["samples"] == 1 else "clustered by question",
        "samples": settings["samples"],
        "tiles": _tiles(summary),
        "checks": checks(summary, answers),
        "sections": [_section(name, r, answers[name], settings) for name, r in summary["benchmarks"].items()],
        "settings": {label: settings[name] for label, name in KEY_SETTINGS.items() if settings[name] is not None},
        "all_settings": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        "hashes": _hashes(summary),
        "environment": summary["environment"],
    }


def figure_text(name: str, estimate: Estimate) -> tuple[str, str]:
    """A figure and its interval as text: `63.2 %` and `60.1 to 66.3 %`, or tokens."""
    if name in NOT_SHARES:
        return f"{estimate.value:.1f}", f"{estimate.low:.1f} to {estimate.high:.1f}"
    return f"{100 * estimate.value:.1f} %", f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f} %"


def pick_examples(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """By outcome and its count, up to EXAMPLES answers at even distances: neither the first nor the nicest ones."""
    picked = {}
    for name, holds in OUTCOMES.items():
        found = [a for a in answers if holds(a)]
        count = min(EXAMPLES, len(found))
        if found:
            places = [(2 * i + 1) * len(found) // (2 * count) for i in range(count)]
            picked[f"{name} ({len(found):,})"] = [found[place] for place in places]
    return picked


def _section(name: str, record: Record, answers: Sequence[Answer], settings: Record) -> Section:
    estimates = _estimates(record["estimates"])
    accuracy_by = {key: _estimates(parts) for key, parts in record["accuracy_by"].items()}
    rows = [_row(figure, e, record["counts"], settings["samples"]) for figure, e in estimates.items()]
    drawings = draw_all(name, estimates, accuracy_by, answers, settings["max_tokens"])
    about = {"title": "", "citation": ""} | record.get("set", {})
    return Section(name, about, rows[0], record["counts"], rows, drawings, pick_examples(answers))


def _estimates(records: Mapping[str, Mapping[str, float]]) -> dict[str, Estimate]:
    return {name: Estimate(**record) for name, record in records.items()}


def _row(name: str, estimate: Estimate, counts: Record, samples: int) -> Row:
    value, interval = figure_text(name, estimate)
    meaning = next(text for start, text in MEANINGS.items() if name.startswith(start))
    count = f"{counts[name]:,} of {counts['samples']:,}" if name in counts else ""
    is_folded = (
        samples > LONGEST_TABLE
        and name.startswith("pass@")
        and int(name.removeprefix("pass@")) not in (*powers_of_two(samples), samples)
    )
    return Row(name, meaning, value, interval, count, None if name in NOT_SHARES else estimate, is_folded)


def _subtitle(settings: Record) -> str:
    parts = [settings["model"], settings["peft"] and f"with {settings['peft']}", f"template {settings['template']}",
             _sampling(settings)]  # fmt: skip
    return " · ".join(part for part in parts if part)


def _sampling(settings: Record) -> str:
    if settings["temperature"] == 0:
        return "greedy"
    parts = [f"temperature {settings['temperature']:g}"]
    parts += [f"top-p {settings['top_p']:g}"] * (settings["top_p"] < 1)
    parts += [f"top-k {settings['top_k']}"] * (settings["top_k"] > 0)
    return ", ".join(parts)


def _tiles(summary: Record) -> list[tuple[str, str]]:
    settings, counts = summary["settings"], [record["counts"] for record in summary["benchmarks"].values()]
    questions, samples, tokens = (sum(c[name] for c in counts) for name in ("questions", "samples", "tokens"))
    return [
        ("questions", f"{questions:,}"),
        (f"completions, {settings['samples']:,} a question", f"{samples:,}"),
        (f"tokens, {settings['max_tokens']:,} a completion at most", f"{tokens:,}"),
        ("wall time of the last session", duration(summary["seconds"])),
    ]


def _hashes(summary: Record) -> dict[str, str]:
    """By what they stand for; two evaluations with equal ones asked the same, in the same way, of the same weights."""
    found = {f"questions of {name}": record["questions_hash"] for name, record in summary["benchmarks"].items()}
    found["template"] = summary["template_hash"]
    models = ("model", "adapter", "reward_model")
    found |= {name.replace("_", " "): summary[f"{name}_hash"] for name in models if summary.get(f"{name}_hash")}
    return found

"""What an evaluation leaves behind: samples.jsonl, summary.json, table.md, report.html."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.benchmarks import Benchmark
from eval.checkpoints import checkpoint_hash
from eval.compare import read_answers
from eval.metrics import Summary, by, summarise, votes_by
from eval.questions import Answer
from eval.report import SAMPLES, SUMMARY, figure_text, write_report
from eval.settings import EvalSettings
from eval.templates import Template
from rlhf.config.loading import to_dict
from rlhf.training.environment import describe_environment
from rlhf.training.run_folder import write_atomically

SETTINGS, TABLE = "settings.json", "table.md"


def read_part(part: Path) -> list[Answer]:
    """The answers of one batch."""
    return [answer for answers in read_answers(part).values() for answer in answers]


def write_results(
    folder: Path,
    settings: EvalSettings,
    benchmarks: Sequence[Benchmark],
    template: Template,
    parts: Sequence[Path],
    seconds: float,
) -> str:
    """Write all files from the batches' `parts`; returns the table, and where the results are."""
    text = _write_figures(folder, settings, benchmarks, template, parts, seconds)
    report = write_report(folder)
    return f"{text}\n\nresults: {folder}\nreport: {report}"


def _write_figures(
    folder: Path,
    settings: EvalSettings,
    benchmarks: Sequence[Benchmark],
    template: Template,
    parts: Sequence[Path],
    seconds: float,
) -> str:
    write_atomically(folder / SAMPLES, (part.read_bytes() for part in parts))
    answers = read_answers(folder / SAMPLES)
    summaries = [
        summarise(answers[b.entry.name], settings.samples, votes_by(b.questions[0].scorer)) for b in benchmarks
    ]
    text = table(summaries)
    groups = {b.entry.name: _groups(answers[b.entry.name]) for b in benchmarks}
    record = {
        "settings": to_dict(settings),
        "benchmarks": {
            s.benchmark: {
                "set": _about(b),
                "questions_hash": b.fingerprint,
                "estimates": {name: asdict(estimate) for name, estimate in s.estimates.items()},
                "counts": s.counts,
                "accuracy_by": groups[s.benchmark],
            }
            for s, b in zip(summaries, benchmarks, strict=True)
        },
        "template_hash": template.fingerprint,
        "model_hash": checkpoint_hash(settings.model),
        "adapter_hash": checkpoint_hash(settings.peft) if settings.peft else None,
        "reward_model_hash": checkpoint_hash(settings.reward_model) if settings.reward_model else None,
        "seconds": seconds,
        "environment": describe_environment(),
    }
    write_atomically(folder / SUMMARY, [json.dumps(record, indent=1).encode()])
    write_atomically(folder / TABLE, [text.encode() + b"\n"])
    return text


def _about(benchmark: Benchmark) -> dict[str, Any]:
    """What a reader of the figures should know of the set; `hub` is None for a generated one and for a local file."""
    entry = benchmark.entry
    return {name: getattr(entry, name, None) for name in ("title", "kind", "hub", "citation", "caution")}


def _groups(answers: Sequence[Answer]) -> dict[str, Any]:
    found = {}
    for key in ("level", "subject"):
        if any(getattr(answer, key) is not None for answer in answers):
            found[key] = {name: asdict(estimate) for name, estimate in by(answers, key).items()}
    return found


def table(summaries: Sequence[Summary]) -> str:
    """A Markdown table, one row a figure, readable as plain text; intervals are 95 %."""
    lines = ["| benchmark | questions | figure | value | 95 % interval |", "|---|---:|---|---:|---|"]
    for summary in summaries:
        for name, estimate in summary.estimates.items():
            value, interval = figure_text(name, estimate)
            lines.append(f"| {summary.benchmark} | {summary.counts['questions']} | {name} | {value} | {interval} |")
    return "\n".join(lines)

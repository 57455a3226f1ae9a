"""What an evaluation leaves behind: samples.jsonl, summary.json, table.md."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.benchmarks import Benchmark
from eval.checkpoints import checkpoint_hash
from eval.compare import read_answers
from eval.intervals import Estimate
from eval.metrics import Summary, by, summarise
from eval.questions import Answer
from eval.settings import EvalSettings
from eval.templates import Template
from rlhf.config.loading import to_dict
from rlhf.training.environment import describe_environment
from rlhf.training.run_folder import write_atomically

SETTINGS, SAMPLES, SUMMARY, TABLE = "settings.json", "samples.jsonl", "summary.json", "table.md"
NOT_SHARES = ("mean tokens",)


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
    """Write all files from the batches' `parts`; returns the table."""
    write_atomically(folder / SAMPLES, (part.read_bytes() for part in parts))
    answers = read_answers(folder / SAMPLES)
    summaries = [summarise(answers[b.entry.name], settings.samples) for b in benchmarks]
    text = table(summaries)
    groups = {b.entry.name: _groups(answers[b.entry.name]) for b in benchmarks}
    record = {
        "settings": to_dict(settings),
        "benchmarks": {
            s.benchmark: {
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
        "seconds": seconds,
        "environment": describe_environment(),
    }
    write_atomically(folder / SUMMARY, [json.dumps(record, indent=1).encode()])
    write_atomically(folder / TABLE, [text.encode() + b"\n"])
    return f"{text}\n\nresults: {folder}"


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
            value, interval = _shown(name, estimate)
            lines.append(f"| {summary.benchmark} | {summary.counts['questions']} | {name} | {value} | {interval} |")
    return "\n".join(lines)


def _shown(name: str, estimate: Estimate) -> tuple[str, str]:
    if name in NOT_SHARES:
        return f"{estimate.value:.1f}", f"{estimate.low:.1f} to {estimate.high:.1f}"
    return f"{100 * estimate.value:.1f} %", f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f} %"

"""Result folders of `python -m eval run` without a model: answers that a test makes, written as at the end of a run."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from eval.artefacts import write_results
from eval.benchmarks import Benchmark, fingerprint
from eval.entries import DatasetEntry, Entry
from eval.questions import Answer, Question
from eval.settings import EvalSettings
from eval.templates import build_template
from rlhf.models.embedded import resolve_model_path
from rlhf.training.run_folder import json_line

MAX_TOKENS = 700


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(resolve_model_path("embedded:smollm2-135m-instruct"))


def answer(sample: int = 0, question: int = 0, **changes: object) -> Answer:
    fields = dict(
        benchmark="own", id=f"own:{question}", sample=sample, seed=1, prompt="What is 1 + 1?", completion="It is 2.",
        tokens=5, finish_reason="stop", gold="2", outcome="right", extracted="2", reason="identical",
    )  # fmt: skip
    return Answer(**(fields | changes))


def write_folder(
    folder: Path, answers: Sequence[Answer], entries: Mapping[str, Entry] | None = None, **changes: object
) -> Path:
    """The folder, with all files of an evaluation; a set without an entry is a public one with a caution."""
    names = list(dict.fromkeys(a.benchmark for a in answers))
    samples = 1 + max(a.sample for a in answers)
    settings = EvalSettings(
        model="Qwen/Qwen2.5-Math-1.5B-Instruct", benchmarks=names, samples=samples, max_tokens=MAX_TOKENS,
        temperature=0.6 if samples > 1 else 0.0, output=str(folder), **changes,
    )  # fmt: skip
    benchmarks = []
    for name in names:
        rows = {a.id: a for a in answers if a.benchmark == name}
        questions = [Question(a.id, a.prompt, a.gold) for a in rows.values()]
        entry = (entries or {}).get(name) or DatasetEntry(
            name=name, title="A part of MATH", hub="some/math", question="problem", answer="answer",
            caution="Seen <b>often</b>.",
        )  # fmt: skip
        benchmarks.append(Benchmark(entry, questions, fingerprint(questions)))
    part = folder / "part.jsonl"
    part.write_bytes(b"".join(json_line(asdict(a)) for a in answers))
    write_results(folder, settings, benchmarks, build_template("none", tokenizer()), [part], 75.0)
    return folder


def page_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def text_of(page: str) -> str:
    body = page.partition("</style>")[2]
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)))

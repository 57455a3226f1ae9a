"""Asking a benchmark: its questions in batches of fixed borders, their completions, the verdicts.

Every completion has a seed of its own: what a batch gives does not depend on which process made it, nor when.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.benchmarks import Benchmark, load_benchmark
from eval.questions import Answer, Question
from eval.scoring import judge
from eval.templates import Rendered, Template, cut_at_stop_string
from rlhf.config.data import DatasetConfig
from rlhf.config.evaluation import BenchmarkSettings
from rlhf.data.errors import DataError
from rlhf.data.rows import read_rows
from rlhf.data.seeds import derive_seed
from rlhf.data.types import Prompt, Sample
from rlhf.rewards.pool import GraderPool
from rlhf.rollouts.engine import Engine, Request

QUESTION_SEED = 0
"""Which generated problems are asked does not depend on `seed`: runs with other draws are compared on the same ones."""


@dataclass(frozen=True)
class Batch:
    """Questions of one benchmark that are completed together."""

    benchmark: str
    number: int
    questions: Sequence[Question]
    prompts: Sequence[Rendered]


def load(settings: BenchmarkSettings, name: str) -> Benchmark:
    """The benchmark called `name`, from where `settings` say."""
    return load_benchmark(
        name,
        data_dir=Path(settings.data_dir) if settings.data_dir else None,
        limit=settings.limit,
        seed=QUESTION_SEED,
        extra_files=[Path(settings.benchmark_file)] if settings.benchmark_file else [],
    )


def load_shots(settings: BenchmarkSettings) -> list[Question]:
    """Worked examples come from GSM8K's training set, as in lm-evaluation-harness."""
    if settings.shots == 0:
        return []
    if settings.benchmarks != ["gsm8k"]:
        raise DataError(f"shots = {settings.shots}: there are worked examples for the benchmark gsm8k alone")
    source = {"path": "openai/gsm8k", "subset": "main", "split": "train"}
    if settings.data_dir:
        source = {"path": str(Path(settings.data_dir) / "gsm8k" / "train.jsonl")}
    rows = read_rows(DatasetConfig(**source, prompt_field="question", answer_field="answer"))
    return [Question(r.id, r.fields["question"], "", columns={"solution": r.fields["answer"]}) for r in rows]


def cut_into_batches(settings: BenchmarkSettings, benchmark: Benchmark, template: Template) -> list[Batch]:
    """All questions of `benchmark` as prompts, `settings.samples_per_batch` completions together."""
    size = max(1, settings.samples_per_batch // settings.samples)
    questions = benchmark.questions
    prompts = [template.render(question, index) for index, question in enumerate(questions)]
    return [
        Batch(benchmark.entry.name, number, questions[first : first + size], prompts[first : first + size])
        for number, first in enumerate(range(0, len(questions), size))
    ]


def longest_sequence(settings: BenchmarkSettings, batches: Sequence[Batch]) -> int:
    """Tokens of the longest prompt, and of the longest completion after it."""
    return max((len(p.token_ids) for batch in batches for p in batch.prompts), default=0) + settings.max_tokens


def answer(settings: BenchmarkSettings, batch: Batch, engine: Engine, pool: GraderPool) -> list[Answer]:
    """The judged completions of a batch, question by question."""
    requests = [
        Request(
            Prompt(question.id, prompt.token_ids, prompt.text),
            index,
            derive_seed(settings.seed, "eval", batch.benchmark, question.id, index),
        )
        for question, prompt in zip(batch.questions, batch.prompts, strict=True)
        for index in range(settings.samples)
    ]
    asked = [pair for pair in zip(batch.questions, batch.prompts, strict=True) for _ in range(settings.samples)]
    samples: list[Sample] = engine.generate(requests, settings.sampling)
    texts = [cut_at_stop_string(s.text, p.stop_strings) for s, (_, p) in zip(samples, asked, strict=True)]
    verdicts = judge(pool, [question for question, _ in asked], texts)
    return [
        Answer(
            benchmark=batch.benchmark,
            id=question.id,
            sample=sample.index,
            seed=sample.seed,
            prompt=prompt.text,
            completion=text,
            tokens=len(sample.completion_ids),
            finish_reason=sample.finish_reason,
            gold=question.gold,
            outcome=verdict.outcome,
            extracted=verdict.extracted,
            reason=verdict.reason,
            timed_out=verdict.timed_out,
            level=question.level,
            subject=question.subject,
        )
        for (question, prompt), sample, text, verdict in zip(asked, samples, texts, verdicts, strict=True)
    ]

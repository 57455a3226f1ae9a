"""`python -m eval run`: ask, complete, judge, write. A run that was killed goes on after its last finished batch.

Questions are cut into batches of fixed borders, and every completion has a seed of its own: what a batch gives does not
depend on which process made it or how often the run was interrupted. Each batch is one file under `parts/`, renamed
into place when whole; `samples.jsonl` is their concatenation. Ranks of `accelerate launch` take batches in turn.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState

from eval.artefacts import SETTINGS, read_part, write_results
from eval.benchmarks import Benchmark, load_benchmark
from eval.checkpoints import build_eval_engine, load_eval_tokenizer
from eval.progress import EvalProgress
from eval.questions import Answer, Question
from eval.scoring import judge, make_pool
from eval.settings import FREE_SETTINGS, EvalSettings
from eval.templates import Rendered, Template, build_template, cut_at_stop_string
from rlhf.config.data import DatasetConfig
from rlhf.config.loading import to_dict
from rlhf.data.errors import DataError
from rlhf.data.rows import read_rows
from rlhf.data.seeds import derive_seed
from rlhf.data.types import Prompt, Sample
from rlhf.rewards.pool import GraderPool
from rlhf.rollouts.engine import Engine, Request
from rlhf.training.checkpoint import config_differences
from rlhf.training.run_folder import json_line, write_atomically

QUESTION_SEED = 0
"""Which generated problems are asked does not depend on `seed`: runs with other draws are compared on the same ones."""


@dataclass(frozen=True)
class Batch:
    """Questions of one benchmark that are completed together, and the file for their answers."""

    benchmark: str
    questions: Sequence[Question]
    prompts: Sequence[Rendered]
    part: Path


def run(settings: EvalSettings) -> Path:
    """Evaluate as told; returns the folder with the results.

    Raises DataError for benchmarks and templates that cannot be used, and for a folder that holds an evaluation with
    other settings; EngineError when the engine fails.
    """
    state = PartialState()
    start = time.monotonic()
    folder = settings.folder
    if state.is_main_process:
        _claim(folder, settings)
    state.wait_for_everyone()
    tokenizer = load_eval_tokenizer(settings)
    benchmarks = [_load(settings, name) for name in settings.benchmarks]
    template = build_template(settings.template, tokenizer, shots=_shots(settings), shot_count=settings.shots)
    batches = [batch for benchmark in benchmarks for batch in _batches(settings, benchmark, template, folder)]
    mine = batches[state.process_index :: state.num_processes]
    missing = [batch for batch in mine if not batch.part.exists()]
    engine = None
    if missing:
        longest = max(len(p.token_ids) for batch in batches for p in batch.prompts) + settings.max_tokens
        log_file = folder / f"engine-{state.process_index}.log"
        engine = build_eval_engine(settings, tokenizer, longest, state.process_index, log_file)
    try:
        with (
            EvalProgress(state.is_main_process) as progress,
            make_pool(settings.grader_workers, settings.grader_timeout_s) as pool,
        ):
            for name in settings.benchmarks:
                ours = [batch for batch in mine if batch.benchmark == name]
                progress.start(name, sum(len(batch.questions) for batch in ours) * settings.samples)
                for batch in ours:
                    is_fresh = not batch.part.exists()
                    if is_fresh:
                        assert engine is not None
                        answers = _answer(settings, batch, engine, pool)
                        write_atomically(batch.part, [json_line(asdict(answer)) for answer in answers])
                    else:
                        answers = read_part(batch.part)
                    right, tokens = sum(a.outcome == "right" for a in answers), sum(a.tokens for a in answers)
                    progress.advance(len(answers), right, tokens, is_fresh)
            state.wait_for_everyone()
            if state.is_main_process:
                seconds = time.monotonic() - start
                parts = [batch.part for batch in batches]
                progress.message(write_results(folder, settings, benchmarks, template, parts, seconds))
        state.wait_for_everyone()
    finally:
        if engine is not None:
            engine.close()
    return folder


def _claim(folder: Path, settings: EvalSettings) -> None:
    """Make the folder, or check that what it holds was made with these settings."""
    file = folder / SETTINGS
    if file.exists():
        saved = json.loads(file.read_text(encoding="utf-8"))
        now = to_dict(settings)
        differences = config_differences(
            {name: value for name, value in saved.items() if name not in FREE_SETTINGS},
            {name: value for name, value in now.items() if name not in FREE_SETTINGS},
        )
        if differences:
            told = "\n".join(line.replace("in the checkpoint", "there") for line in differences)
            raise DataError(f"{folder} holds an evaluation with other settings:\n{told}\nChoose another --output")
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    write_atomically(file, [json.dumps(to_dict(settings), indent=1).encode()])


def _load(settings: EvalSettings, name: str) -> Benchmark:
    return load_benchmark(
        name,
        data_dir=Path(settings.data_dir) if settings.data_dir else None,
        limit=settings.limit,
        seed=QUESTION_SEED,
        extra_files=[Path(settings.benchmark_file)] if settings.benchmark_file else [],
    )


def _shots(settings: EvalSettings) -> list[Question]:
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


def _batches(settings: EvalSettings, benchmark: Benchmark, template: Template, folder: Path) -> Iterator[Batch]:
    size = max(1, settings.samples_per_batch // settings.samples)
    questions = benchmark.questions
    prompts = [template.render(question, index) for index, question in enumerate(questions)]
    for number, first in enumerate(range(0, len(questions), size)):
        chosen = slice(first, first + size)
        part = folder / "parts" / f"{benchmark.entry.name}-{number:05d}.jsonl"
        yield Batch(benchmark.entry.name, questions[chosen], prompts[chosen], part)


def _answer(settings: EvalSettings, batch: Batch, engine: Engine, pool: GraderPool) -> list[Answer]:
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

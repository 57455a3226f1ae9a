"""Benchmarks in training: asked of the engine that makes the rollouts, by the code of `python -m eval run`.

Each evaluation leaves `evaluations/step-<step>/samples.jsonl` in the run's folder, so `python -m eval compare` can set
any two of them beside each other, question by question.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from eval.artefacts import SAMPLES
from eval.asking import answer, cut_into_batches, load, load_shots, longest_sequence
from eval.compare import compare, read_answers
from eval.metrics import summarise, votes_by
from eval.questions import Answer
from eval.scoring import make_pool
from eval.templates import build_template
from rlhf.config.evaluation import EvaluationConfig
from rlhf.config.grpo import GRPOConfig
from rlhf.rollouts.engine import Engine
from rlhf.training.collectives import gather_lists
from rlhf.training.run_folder import json_line, write_atomically


class BenchmarkEvaluator:
    """Evaluates on the benchmarks of `settings`; the ranks take batches in turn, and all get the result."""

    def __init__(
        self,
        settings: EvaluationConfig,
        tokenizer: PreTrainedTokenizerBase,
        rank: int,
        world_size: int,
        folder: Path,
    ) -> None:
        """Raises DataError for a benchmark or a template that cannot be used."""
        self.settings, self.rank, self.world_size, self.folder = settings, rank, world_size, folder
        benchmarks = [load(settings, name) for name in settings.benchmarks]
        template = build_template(settings.template, tokenizer, shots=load_shots(settings), shot_count=settings.shots)
        self.votes = {each.entry.name: votes_by(each.questions[0].scorer) for each in benchmarks}
        self.batches = [batch for each in benchmarks for batch in cut_into_batches(settings, each, template)]
        self.longest_sequence = longest_sequence(settings, self.batches)
        self.pool = make_pool(settings.grader_workers, settings.grader_timeout_s)

    def evaluate(self, engine: Engine, step: int) -> list[dict[str, Any]]:
        """One line for evaluations.jsonl each benchmark, with all figures of `eval.metrics.summarise`; after the first
        evaluation also the paired change since then."""
        answers: dict[str, list[Answer]] = {}
        for name in self.settings.benchmarks:
            batches = [batch for batch in self.batches if batch.benchmark == name]
            asked = range(self.rank, len(batches), self.world_size)
            ours = [(number, answer(self.settings, batches[number], engine, self.pool)) for number in asked]
            answers[name] = [one for _, some in sorted(gather_lists(ours), key=lambda pair: pair[0]) for one in some]
        first = self._first(step)
        if self.rank == 0:
            lines = (json_line(asdict(one)) for some in answers.values() for one in some)
            self._samples(step).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._samples(step), lines)
        return [self._record(step, some, first.get(name)) for name, some in answers.items()]

    def close(self) -> None:
        self.pool.close()

    def _record(self, step: int, answers: Sequence[Answer], first: Sequence[Answer] | None) -> dict[str, Any]:
        summary = summarise(answers, self.settings.samples, self.votes[answers[0].benchmark])
        figures = {name: asdict(estimate) for name, estimate in summary.estimates.items()}
        accuracy, counts = next(iter(figures.values())), summary.counts
        record = {
            "step": step,
            "name": summary.benchmark,
            "right": counts["right"],
            "wrong": counts["wrong"],
            "ungradable": counts["ungradable"],
            "n": counts["samples"],
            "accuracy": accuracy["value"],
            "low": accuracy["low"],
            "high": accuracy["high"],
            "mean_tokens": counts["tokens"] / counts["samples"],
            "truncated_share": counts["truncated"] / counts["samples"],
            "figures": figures,
        }
        if first is not None:
            comparison = compare(first, answers)
            record["change"] = asdict(comparison.difference) | {"p_value": comparison.p_value}
        return record

    def _first(self, step: int) -> dict[str, list[Answer]]:
        """The answers before training; none while these are made."""
        return read_answers(self._samples(0)) if step > 0 and self._samples(0).exists() else {}

    def _samples(self, step: int) -> Path:
        return self.folder / "evaluations" / f"step-{step:06d}" / SAMPLES


def benchmark_evaluators(
    config: GRPOConfig, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator, folder: Path
) -> list[BenchmarkEvaluator]:
    """For `rlhf.trainers.run.run`: the evaluator of `config.evaluation.benchmarks`, if there are any."""
    if not config.evaluation.benchmarks:
        return []
    rank, world_size = accelerator.process_index, accelerator.num_processes
    return [BenchmarkEvaluator(config.evaluation, tokenizer, rank, world_size, folder)]

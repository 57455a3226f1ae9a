"""Benchmarks in training: own sampling, the figures of `python -m eval run`, the best checkpoint by one of them."""

import json
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.in_training import benchmark_evaluators
from rlhf.config.sources import ConfigError
from rlhf.data.errors import DataError
from rlhf.training.run_folder import RunFolder
from tests.tiny_runs import save_tiny_model, tiny_config

EVALUATION = {
    "prompts": 4, "every": 1, "benchmarks": ["arithmetic", "word_problems"], "limit": 6, "samples": 2,
    "temperature": 0.7, "max_tokens": 10, "samples_per_batch": 8, "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """A finished run of two steps."""
    from rlhf.trainers.run import run

    runs = tmp_path_factory.mktemp("runs")
    config = tiny_config(
        model, evaluation=EVALUATION, run={"folder": str(runs), "name": "tiny"},
        batch={"steps": 2, "prompts_per_step": 4, "tokens_per_micro_batch": 128},
        checkpoint={"every": 1, "keep_best": "evaluation/word_problems/mean tokens", "keep_last": 1},
    )  # fmt: skip
    return run(config, benchmark_evaluators)


def records(folder: Path) -> dict[tuple[str, int], dict]:
    return {(record["name"], record["step"]): record for record in RunFolder(folder).read_evaluations()}


@pytest.mark.slow
def test_each_set_is_measured_before_during_and_after(folder):
    found = records(folder)
    assert set(found) == {(n, step) for n in ("held_out", "arithmetic", "word_problems") for step in (0, 1, 2)}
    for (name, step), record in found.items():
        assert record["low"] <= record["accuracy"] <= record["high"]
        counted = record["right"] + record["wrong"] + record["ungradable"]
        assert counted == record["n"] == (4 if name == "held_out" else 12)
        if name != "held_out":
            assert {"avg@2", "pass@1", "pass@2", "maj@2", "truncated"} <= record["figures"].keys()
            assert ("change" in record) == (step > 0)
            change = record["accuracy"] - found[name, 0]["accuracy"]
            assert step == 0 or record["change"]["value"] == pytest.approx(change)


@pytest.mark.slow
def test_the_figures_are_those_of_eval_run_on_the_exported_checkpoint(folder, tmp_path):
    settings = {
        "model": folder / "model", "engine": "transformers", "benchmarks": "arithmetic,word_problems", "limit": 6,
        "samples": 2, "temperature": 0.7, "max_tokens": 10, "samples_per_batch": 8, "seed": 3, "dtype": "float32",
        "output": tmp_path / "after",
    }  # fmt: skip
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["run", *flags]) == 0
    inside = (folder / "evaluations" / "step-000002" / "samples.jsonl").read_bytes()
    assert (tmp_path / "after" / "samples.jsonl").read_bytes() == inside
    summary = json.loads((tmp_path / "after" / "summary.json").read_text())
    for name in ("arithmetic", "word_problems"):
        assert summary["benchmarks"][name]["estimates"] == records(folder)[name, 2]["figures"]


@pytest.mark.slow
def test_any_two_evaluations_of_a_run_are_compared(folder, capsys):
    steps = [str(folder / "evaluations" / f"step-{step:06d}") for step in (0, 2)]
    assert main(["compare", *steps]) == 0
    assert "arithmetic: 6 questions, paired" in capsys.readouterr().out


@pytest.mark.slow
def test_the_checkpoint_with_the_best_figure_is_kept(folder):
    values = {step: records(folder)["word_problems", step]["figures"]["mean tokens"]["value"] for step in (1, 2)}
    best = max(values, key=lambda step: (values[step], step))
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert any(str(best) in name for name in names) and any("2" in name for name in names), names


def test_an_unknown_benchmark_is_refused_before_a_model_is_loaded(tmp_path, model):
    from rlhf.trainers.run import run

    config = tiny_config(model, evaluation={"prompts": 0, "benchmarks": ["aritmetic"]},
                         run={"folder": str(tmp_path), "name": "typo"})  # fmt: skip
    with pytest.raises(DataError, match="arithmetic"):
        run(config, benchmark_evaluators)


def test_benchmarks_without_the_evaluation_suite_are_refused(tmp_path, model):
    from rlhf.trainers.run import run

    config = tiny_config(model, evaluation={"prompts": 0, "benchmarks": ["arithmetic"]},
                         run={"folder": str(tmp_path), "name": "bare"})  # fmt: skip
    with pytest.raises(ConfigError, match="benchmark_evaluators"):
        run(config)

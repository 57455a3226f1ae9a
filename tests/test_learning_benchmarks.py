"""Benchmarks that compare how methods learn: what their columns mean, and that one runs from end to end."""

# ruff: noqa: E402 - a benchmark is a script, and finds its neighbours in its own folder

import argparse
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import value_based_learning
from capo_stability import VARIANTS, Course
from peers.comparison import verdict, welch
from preference_learning import exploration
from staleness import TIMES, Outcome, lay_out

from tests.processes import output_of, start
from tests.tiny_runs import save_tiny_model


def test_the_difference_of_two_means_has_welch_s_interval():
    gap, low, high = welch([1.0, 2.0, 3.0], [2.0, 4.0, 9.0])
    assert gap == pytest.approx(-3)
    # by hand: variances 1 and 13 over 3 each, 2.3059 degrees of freedom by Welch and Satterthwaite, t = 3.79943
    assert (low + high) / 2 == pytest.approx(-3)
    assert (high - low) / 2 == pytest.approx(3.79943 * (14 / 3) ** 0.5, rel=1e-5)
    assert [verdict(*ends) for ends in ((-2, -1), (1, 2), (-1, 1))] == ["better", "worse", "within seed noise"]


def test_exploration_is_of_the_last_steps_and_of_the_policy_s_own_completions():
    def sample(step, prompt, index, outcome, extracted):
        return {"step": step, "prompt_id": prompt, "index": index, "outcome": outcome, "extracted": extracted}

    samples = [
        sample(1, "a", 0, "right", "5"), sample(2, "a", 0, "right", "5"), sample(2, "a", 1, "wrong", "5"),
        sample(2, "b", 0, "wrong", "7"), sample(2, "b", 1, "wrong", "8"), sample(2, "b", -1, "right", "9"),
    ]  # fmt: skip
    found = exploration(samples, after=1)
    assert found == {"rollouts right, %": 25, "pass@8, %": 50, "unique answers, %": 75}


def test_a_course_collapses_at_half_its_peak():
    def course(*accuracy):
        return Course(VARIANTS["grpo"], 0, list(range(0, 5 * len(accuracy), 5)), list(accuracy), 0, 1, None)

    assert course(0.3, 0.8, 0.4).has_collapsed and not course(0.3, 0.8, 0.41).has_collapsed
    assert course(0.3, 0.6, 0.8).completions_to(0.6) == 5 * 64 and course(0.3, 0.6).completions_to(0.7) is None


def test_generation_ahead_is_compared_seed_by_seed():
    def outcome(seconds, right):
        return Outcome({name: [seconds, seconds + 2] for name in TIMES}, right, 200, 0.5, 0.01)

    arguments = argparse.Namespace(staleness=[0, 1], engine="vllm", model="m", steps=3, note="")
    text = lay_out(arguments, {0: [outcome(5, 100), outcome(3, 120)], 1: [outcome(2, 110), outcome(3, 90)]})
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "5.00" in rows["0 (2)"] and "1.00 [1.00, 1.00]" in rows["0 (2)"] and "55.0 [50.1, 59.8]" in rows["0 (2)"]
    assert "1.50 [1.00, 2.00]" in rows["1 (2)"] and "50.0 [45.1, 54.9]" in rows["1 (2)"]
    assert "held-out: -5.0 points" in text


@pytest.mark.slow
def test_the_comparison_of_generation_ahead_runs(tmp_path):
    out = tmp_path / "table.md"
    output_of(start(
        ROOT / "benchmarks" / "staleness.py", "--quick", "--engine", "transformers", "--model",
        save_tiny_model(tmp_path / "model"), "--folder", tmp_path / "runs", "--out", out,
    ))  # fmt: skip
    assert "| 0 (1) " in out.read_text() and "| 1 (1) " in out.read_text()


@pytest.mark.slow
def test_the_optimizers_comparison_runs(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    out = tmp_path / "table.md"
    output_of(start(
        ROOT / "benchmarks" / "optimizer_learning.py", "--quick", "--optimizers", "adamw", "frugal", "--model", model,
        "--folder", tmp_path / "runs", "--out", out,
    ))  # fmt: skip
    text = out.read_text()
    assert "| adamw " in text and "| frugal " in text and out.with_suffix(".png").exists()
    assert len(list((tmp_path / "runs").glob("*.json"))) == 6


def test_the_regret_benchmark_runs_and_tells_the_same_in_json_and_in_its_table(tmp_path):
    out = tmp_path / "regret.md"
    printed = output_of(start(ROOT / "benchmarks" / "regret.py", "--quick", "--json", "--out", out))
    progress, _, document = printed.partition("\n{")
    assert progress.count("seed 2: regret") == 4 + 4 + 13
    tables = json.loads("{" + document)["tables"]
    river = {summary["method"]: summary for summary in tables["RiverSwim, six states"]}
    assert river["LOOP, beta 0.5"]["regret"][-1] < 0.3 * river["greedy"]["regret"][-1]
    assert river["greedy"]["violations"] == river["greedy"]["plans"]
    text = out.read_text()
    assert f"{river['greedy']['regret'][-1]:,.0f}" in text and "| NORA, eta 0.5 " in text
    assert out.with_suffix(".png").exists()


def test_outcomes_of_value_based_runs_are_kept_beside_the_table_and_read_back(tmp_path, monkeypatch, capsys):
    def outcome(right):
        figures = {"held-out right, %": right / 2, "exchanges": 0.0, "calibration": float("nan")}
        return value_based_learning.Outcome(figures, [0.1, 0.2], right)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["value_based_learning.py", "--folder", str(tmp_path), *arguments])
        value_based_learning.main()
        return capsys.readouterr().out

    known, other = tmp_path / "known.md", tmp_path / "other.md"
    arguments = argparse.Namespace(
        task="demo", steps=14, lr=3e-5, offline=200, engine="transformers", out=known,
        known=[known.with_suffix(".json")],
    )
    outcomes = {("grpo", 0): outcome(100), ("grpo", 1): outcome(120), ("nora", 0): outcome(80)}
    value_based_learning.write_known(arguments, outcomes)
    known_again = value_based_learning.read_known(arguments)
    assert known_again.keys() == outcomes.keys() and known_again["nora", 0].right == 80
    read = ["--known", str(known.with_suffix(".json")), "--finished", "--methods", "grpo", "nora"]
    table = run(*read, "--out", str(other))
    assert "grpo (2)" in table and "nora (1)" in table and "55.00 (7.07)" in table
    assert json.loads(other.with_suffix(".json").read_text()) == json.loads(known.with_suffix(".json").read_text())
    with pytest.raises(SystemExit, match=r"outcomes of .*'steps': 14.* and this table is of .*'steps': 15"):
        run(*read, "--steps", "15")

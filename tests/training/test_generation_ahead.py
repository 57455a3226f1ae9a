"""Whole runs with `batch.staleness`: whose weights made which batch, that timing changes nothing, refills, errors."""

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config.grpo import GRPOConfig
from rlhf.config.ppo import PPOConfig
from rlhf.rollouts.engine import EngineError
from rlhf.rollouts.transformers_engine import TransformersEngine
from rlhf.trainers.grpo import PolicyGradient
from rlhf.trainers.run import run
from rlhf.training import generation_ahead
from rlhf.training.background_call import BackgroundCall
from rlhf.training.checkpoint import list_checkpoints, load_checkpoint
from rlhf.training.guards import TrainingStopped
from rlhf.training.learner import Learner
from rlhf.training.metrics import deterministic
from rlhf.training.report.run_report import checks
from rlhf.training.run_folder import RunFolder
from tests.tiny_runs import EVEN_TOKENS, make_learner, make_samples, save_tiny_model, tiny_config

STEPS = 4
CORRECTED = {"mismatch": {"level": "token"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def config_of(path: str, folder: Path, name: str, staleness: int = 1, /, **changes: Any) -> GRPOConfig:
    sections = {
        "run": {"folder": str(folder), "name": name},
        "batch": {"steps": STEPS, "prompts_per_step": 4, "tokens_per_micro_batch": 128, "staleness": staleness},
        "algorithm": CORRECTED,
        "checkpoint": {"every": 1, "keep_last": 9, "export": False},
    }
    return tiny_config(path, **(sections | changes))


def result_of(folder: Path) -> tuple[list[dict], str, str]:
    """Metrics without times, samples, and the last checkpoint's weights."""
    metrics = [deterministic(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = (list_checkpoints(folder / "checkpoints")[-1] / "weights.safetensors").read_bytes()
    return metrics, (folder / "samples.jsonl").read_text(), hashlib.sha256(weights).hexdigest()


class CallAtOnce(BackgroundCall):
    """The same call before the update, in the main thread: nothing overlaps."""

    def __init__(self, call, name):
        start = time.perf_counter()
        with torch.no_grad():
            self._value = call()
        self.seconds = time.perf_counter() - start

    def result(self):
        return self._value


@pytest.mark.parametrize("staleness", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_batch_is_of_the_weights_that_many_steps_before(model: str, tmp_path: Path, staleness: int) -> None:
    folder = run(config_of(model, tmp_path, "run", staleness))
    samples = list(RunFolder(folder).read_samples())
    assert {(s["step"], s["policy_version"]) for s in samples} == {
        (step, max(0, step - 1 - staleness)) for step in range(1, STEPS + 1)
    }
    assert len(samples) == STEPS * 16 and len({s["prompt_id"] for s in samples}) == STEPS * 4
    for path in list_checkpoints(folder / "checkpoints"):
        checkpoint = load_checkpoint(path)
        step = checkpoint.state["step"]
        later = range(step + 1, step + 1 + staleness)
        assert checkpoint.state["pending_steps"] == [at for at in later for _ in range(16)]
        versions = [max(0, at - 1 - staleness) for at in later for _ in range(16)]
        assert [s.policy_version for s in checkpoint.pending] == versions
        assert checkpoint.state["policy_version"] == step
        assert checkpoint.state["stream"]["position"] == (step + staleness) * 4
    metrics = RunFolder(folder).read_metrics()
    assert [record["staleness/mean"] for record in metrics] == [min(staleness, step) for step in range(STEPS)]
    assert all("time/overlap" in record and "time/wait" in record for record in metrics)
    assert any("of 1 where samples were of the same weights" in check.text for check in checks(metrics, {}))
    report = (folder / "report.html").read_text()
    assert "Generation ahead" in report and "Staleness" in report


@pytest.mark.slow
def test_the_result_does_not_depend_on_what_ends_first(model: str, tmp_path: Path, monkeypatch) -> None:
    """Dropout draws from the process' generator while the engine samples; refills follow at the join."""
    changes = {
        "model": {"path": model, "dtype": "float32", "lora": {"rank": 2, "dropout": 0.2}},
        "algorithm": CORRECTED | {"dynamic_sampling": {"max_refills": 2}},
        "rewards": {"functions": [{"type": "callable", "path": f"{EVEN_TOKENS}:mostly_even"}]},
        "optimizer": {"type": "adamw", "lr": 1e-2}, "guards": {"max_ungradable_share": 1.0, "ratio_tolerance": 10.0},
    }  # fmt: skip
    beside = result_of(run(config_of(model, tmp_path, "beside", **changes)))
    assert sum(record["groups/discarded"] for record in beside[0]) > 0
    samples = [json.loads(line) for line in beside[1].splitlines()]
    assert len({(s["prompt_id"], s["index"]) for s in samples}) == len(samples) == STEPS * 16
    with monkeypatch.context() as patch:
        patch.setattr(generation_ahead, "BackgroundCall", CallAtOnce)
        before = result_of(run(config_of(model, tmp_path, "before", **changes)))
    generate, update = TransformersEngine.generate, Learner.update
    with monkeypatch.context() as patch:
        updated = threading.Event()

        def generate_last(self, *arguments, **settings):
            if threading.current_thread() is not threading.main_thread():
                assert updated.wait(60)
            return generate(self, *arguments, **settings)

        def update_first(self, *arguments):
            metrics = update(self, *arguments)
            updated.set()
            return metrics

        patch.setattr(TransformersEngine, "generate", generate_last)
        patch.setattr(Learner, "update", update_first)
        after = result_of(run(config_of(model, tmp_path, "after", **changes)))
    assert beside == before == after


@pytest.mark.slow
def test_the_engine_is_idle_and_new_where_it_evaluates(model: str, tmp_path: Path) -> None:
    seen = []

    class Versions:
        longest_sequence = 16

        def evaluate(self, engine, step):
            busy = [t.name for t in threading.enumerate() if t.name.startswith("the batch")]
            seen.append((step, engine.version, busy))
            return []

        def close(self):
            pass

    evaluated = {"prompts": 0, "every": 2}
    config = config_of(model, tmp_path, "evaluated", evaluation=evaluated)
    run(config, make_evaluators=lambda *_: [Versions()])
    assert seen == [(0, 0, []), (2, 2, []), (4, 4, [])]
    samples = RunFolder(tmp_path / "evaluated").read_samples()
    assert {(s["step"], s["policy_version"]) for s in samples} == {(1, 0), (2, 0), (3, 1), (4, 2)}


def test_an_error_of_the_engine_is_raised_at_the_join(model: str, tmp_path: Path, monkeypatch) -> None:
    generate = TransformersEngine.generate

    def fail(self, *arguments, **settings):
        if self.version == 2:
            self.close()
        return generate(self, *arguments, **settings)

    monkeypatch.setattr(TransformersEngine, "generate", fail)
    with pytest.raises(EngineError, match="closed") as caught:
        run(config_of(model, tmp_path, "run"))
    assert "the batch of step 4" in caught.value.__notes__[0]
    kept = [load_checkpoint(path).state["step"] for path in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert kept == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("error", [TrainingStopped, KeyboardInterrupt])
def test_an_end_of_the_main_thread_ends_the_generation(model: str, tmp_path: Path, monkeypatch, error) -> None:
    begun = threading.Event()

    def decode_for_ever(*_):
        begun.set()
        while True:
            time.sleep(0.001)

    update = Learner.update

    def interrupted(self, samples, algorithm, step):
        if step == 2:
            assert begun.wait(60)
            raise error("now")
        metrics = update(self, samples, algorithm, step)
        monkeypatch.setattr("rlhf.rollouts.transformers_engine.decode", decode_for_ever)
        while any(t.name.startswith("the batch") for t in threading.enumerate()):
            time.sleep(0.001)
        return metrics

    monkeypatch.setattr(Learner, "update", interrupted)
    start = time.monotonic()
    with pytest.raises(error, match="now"):
        run(config_of(model, tmp_path, "run"))
    assert not any(t.name.startswith("the batch") for t in threading.enumerate())
    assert time.monotonic() - start < 60


@pytest.mark.slow
def test_a_changed_staleness_is_refused_and_told(model: str, tmp_path: Path) -> None:
    run(config_of(model, tmp_path, "run", 1))
    with pytest.raises(RuntimeError, match=r"batch\.staleness: 1 in the checkpoint, 0 now"):
        run(config_of(model, tmp_path, "run", 0))


def test_only_samples_of_the_learner_s_weights_are_checked(model: str, tmp_path: Path) -> None:
    """The log-probs of `make_samples` are far from any policy's."""
    for staleness, step, is_checked in ((0, 2, True), (1, 1, True), (1, 2, False)):
        learner = make_learner(config_of(model, tmp_path, "run", staleness), tmp_path / "dumps")
        algorithm = PolicyGradient(learner.config.algorithm, 4)
        batch = algorithm.prepare(make_samples(), learner)
        if is_checked:
            with pytest.raises(TrainingStopped, match="times the engine's probability"):
                learner.update(batch, algorithm, step)
        else:
            metrics = learner.update(batch, algorithm, step)
            assert abs(metrics["policy/engine_ratio_mean"] - 1) > 0.1
            assert 0 < metrics["policy/mismatch_capped_share"] < 1 and metrics["policy/mismatch_weight"] <= 2


@pytest.mark.slow
def test_sessions_and_a_critic_can_be_ahead(model: str, tmp_path: Path) -> None:
    sessions = {
        "data": {"type": "number_guessing", "numbers": 4, "max_prompt_tokens": 96},
        "environment": {"type": "number_guessing", "turns": 2},
        "rewards": {"functions": [{"type": "environment"}, {"type": "callable", "path": f"{EVEN_TOKENS}:even_share"}]},
        "sampling": {"samples_per_prompt": 4, "max_tokens": 4},
        "algorithm": CORRECTED | {"critic": {"bounds": [-1.0, 3.0], "pretrain_steps": 2}},
        "schema": PPOConfig,
    }
    from rlhf.trainers.ppo import ActorCritic

    folder = run(config_of(model, tmp_path, "run", 1, **sessions), make_algorithm=ActorCritic)
    samples = list(RunFolder(folder).read_samples())
    assert {(s["step"], s["policy_version"]) for s in samples} == {(1, 0), (2, 0), (3, 1), (4, 2)}
    assert all(len(s["turns"]) == 2 for s in samples)
    # the critic learns alone in two steps, not in those of samples of two versions
    trained = [record["tokens/trained"] > 0 for record in RunFolder(folder).read_metrics()]
    assert trained == [False, False, True, True]

"""Whole runs with sessions: killed and resumed to the bit, evaluated, reported; errors and recipes as shipped."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.grpo import GRPOConfig
from rlhf.config.loading import parse_config, to_yaml
from rlhf.config.model import ModelConfig
from rlhf.config.ppo import PPOConfig
from rlhf.config.rollouts import SamplingConfig, VllmEngineConfig
from rlhf.data.sources import load_prompts
from rlhf.models.loading import load_tokenizer
from rlhf.rollouts.build import build_engine
from rlhf.rollouts.dialogues import Dialogues
from rlhf.rollouts.requests import make_requests
from rlhf.training.checkpoint import list_checkpoints
from rlhf.training.dialogue_evaluation import reward_per_turn
from rlhf.training.metrics import deterministic, rollout_metrics
from rlhf.training.progress import accuracy_lines, dialogue_text
from rlhf.training.report.evaluation_figures import change_between, main_figure
from rlhf.training.report.plots import by_figure, draw_evaluations
from tests.environments.sessions import dialogue_samples, own_mask
from tests.processes import RECIPE, ROOT, output_of, start
from tests.tiny_runs import EVEN_TOKENS, save_tiny_model, tiny_config
from tests.trainers.restarts import check_restart

STEPS = 4
KILLED_RUN = ROOT / "tests" / "invariants" / "killed_run.py"
SESSIONS: dict[str, Any] = {
    "data": {"type": "number_guessing", "numbers": 4, "max_prompt_tokens": 96},
    "environment": {"type": "number_guessing", "turns": 3},
    # random models find nothing: even ids give them something to learn
    "rewards": {"functions": [{"type": "environment"}, {"type": "callable", "path": f"{EVEN_TOKENS}:even_share"}]},
    "sampling": {"samples_per_prompt": 4, "max_tokens": 4},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def write_config(folder: Path, model: str, name: str, **changes: Any) -> Path:
    config = tiny_config(
        model, run={"folder": str(folder), "name": name},
        batch={"steps": STEPS, "prompts_per_step": 4, "minibatches": 2, "tokens_per_micro_batch": 512},
        **(SESSIONS | changes),
    )  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(to_yaml(config))
    return file


def read(run: Path) -> tuple[list[dict], str, bytes]:
    metrics = [deterministic(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = (list_checkpoints(run / "checkpoints")[-1] / "weights.safetensors").read_bytes()
    return metrics, (run / "samples.jsonl").read_text(), weights


@pytest.mark.slow
def test_killed_and_resumed_equals_straight(model: str, tmp_path: Path) -> None:
    """Killed in the second turn of a step's sessions, and in the update with the sessions behind it."""
    evaluation = {"prompts": 4, "max_tokens": 4}
    output = output_of(start(*RECIPE, write_config(tmp_path, model, "straight", evaluation=evaluation)))
    assert "reward per turn" in output and "4 sessions, 12 turns" in output
    straight = read(tmp_path / "straight")
    assert all(line["gradient/norm"] > 0 for line in straight[0])
    assert all(line["dialogue/turns_mean"] == 3 for line in straight[0])
    samples = [json.loads(line) for line in straight[1].splitlines()]
    assert len(samples) == STEPS * 16 and all(len(s["turns"]) == 3 and len(s["messages"]) == 6 for s in samples)
    report = (tmp_path / "straight" / "report.html").read_text()
    assert "Reward per turn on" in report and "environment: " in report and "Held-out reward per turn" in report
    # the evaluation before the first step decodes three times, and each step three times
    for name, phase, when in (("turn", "generate", 3 + 3 + 2), ("update", "update", 2)):
        file = write_config(tmp_path, model, name, evaluation=evaluation)
        output_of(start(KILLED_RUN, file, phase, str(when)), -signal.SIGKILL)
        assert "resuming" in output_of(start(*RECIPE, file))
        assert read(tmp_path / name) == straight


@pytest.mark.slow
def test_ppo_resumes(model: str, tmp_path: Path) -> None:
    config = tiny_config(
        model, schema=PPOConfig, **SESSIONS, algorithm={"critic": {"bounds": [-1.0, 3.0], "pretrain_steps": 1}}
    )
    check_restart("ppo", config, tmp_path)


@pytest.mark.slow
def test_an_environment_that_fails_stops_the_run(model: str, tmp_path: Path) -> None:
    environment = {"type": "callable", "path": f"{ROOT}/tests/environments/sessions.py:Failing", "turns": 3}
    output = output_of(start(*RECIPE, write_config(tmp_path, model, "failing", environment=environment)), 1)
    assert "turn 2: the environment's answer raised ZeroDivisionError: no such thing" in output
    assert "sample number_guessing-4x1-train:" in output


@pytest.mark.parametrize("recipe", ["grpo", "ppo"])
def test_shipped_recipes(recipe: str) -> None:
    schema = {"grpo": GRPOConfig, "ppo": PPOConfig}[recipe]
    config = parse_config(schema, ["--config", str(ROOT / "configs" / recipe / "demo_number_guessing.yaml")])
    source = load_prompts(config.data, load_tokenizer(config.model), seed=0)
    assert len(source[0].token_ids) <= config.data.max_prompt_tokens
    # every answer of the environment fits, with the chat template and the end of a turn that was cut
    chat = Dialogues(config.environment, load_tokenizer(config.model)).chat
    for reply in ("higher", "lower", "right, next", "number?"):
        assert len(chat.between(reply, (5,))) <= config.environment.max_reply_tokens


def test_reward_per_turn_and_its_interval() -> None:
    """For sessions of equal length it is the mean and its standard error."""
    rewards, turns = [2.0, 0.0, 1.0, 3.0], [4, 4, 4, 4]
    value, low, high = reward_per_turn(rewards, turns)
    each = [reward / 4 for reward in rewards]
    mean = sum(each) / 4
    error = math.sqrt(sum((x - mean) ** 2 for x in each) / 3 / 4)
    assert value == pytest.approx(mean)
    assert (high - low) / 2 == pytest.approx(1.959964 * error)
    assert reward_per_turn([2.0, 1.0], [4, 2])[:2] == (0.5, 0.5)
    assert math.isnan(reward_per_turn([], [])[0]) and math.isnan(reward_per_turn([1.0], [2])[1])


def test_metrics_of_sessions() -> None:
    samples = [sample for sample in dialogue_samples() if sample.turns]
    metrics = rollout_metrics(samples).result()
    masks = [own_mask(sample) for sample in samples]
    turns = sum(len(sample.turns) for sample in samples)
    assert metrics["dialogue/reward_per_turn"] == pytest.approx(sum(sum(s.turn_rewards) for s in samples) / turns)
    assert metrics["dialogue/turns_mean"] == pytest.approx(turns / len(samples))
    assert metrics["dialogue/own_tokens_per_turn"] == pytest.approx(sum(map(sum, masks)) / turns)
    share = 1 - sum(map(sum, masks)) / sum(map(len, masks))
    assert metrics["dialogue/environment_token_share"] == pytest.approx(share)


def record(step: int, value: float, half: float) -> dict[str, Any]:
    return {"step": step, "name": "held_out", "reward_per_turn": value, "low": value - half, "high": value + half,
            "n": 16, "turns": 128, "reward_per_session": 8 * value, "mean_tokens": 20.0, "truncated_share": 1.0}


def test_evaluations_of_both_kinds_stand_side_by_side() -> None:
    before, after = record(0, 0.1, 0.03), record(8, 0.3, 0.04)
    change = change_between(before, after)
    assert (change.value, change.high - change.value) == pytest.approx((0.2, 0.05))
    assert accuracy_lines(before, after)[0] == "reward per turn before: 0.100 [0.070, 0.130] (16 sessions)"
    assert "change: +0.200 [+0.150, +0.250]; the 95 % intervals do not overlap" in accuracy_lines(before, after)
    counted = {"step": 0, "name": "gsm8k", "accuracy": 0.5, "low": 0.4, "high": 0.6, "right": 5, "n": 10}
    assert [[main_figure(r).name for r in group] for group in by_figure([before, counted, after])] == [
        ["reward_per_turn"] * 2, ["accuracy"]
    ]  # fmt: skip
    assert draw_evaluations([before, after]).title == "Held-out reward per turn"


def test_a_dialogue_as_text() -> None:
    text = dialogue_text(("5", "higher", "6\n", "right, next"), (0.0, 1.0))
    assert text == "model: 5\nenvironment: higher\nmodel: 6⏎   [+1]\nenvironment: right, next"


@pytest.mark.slow
def test_sessions_on_vllm() -> None:
    """Turns that use what is cached of the turns before are the same every time."""
    model = ModelConfig(path="embedded:smollm2-135m-instruct", dtype="float32")
    config, tokenizer = tiny_config("x", **SESSIONS), load_tokenizer(model)
    dialogues = Dialogues(config.environment, tokenizer)
    source = load_prompts(config.data, tokenizer, seed=0)
    requests = make_requests([source[0], source[1]], 2, 0, 1)
    engine = build_engine(
        VllmEngineConfig(cpu_kv_cache_gib=0.25), model, longest_sequence=256, tokenizer=tokenizer, seed=0
    )
    try:
        first = dialogues.play(engine, requests, SamplingConfig(max_tokens=4))
        assert dialogues.play(engine, requests, SamplingConfig(max_tokens=4)) == first
    finally:
        engine.close()
    for sample in first:
        assert len(sample.turns) == 3 and all(logp < 0 for logp in sample.own(sample.logps))
        assert sample.text == "\n".join(sample.messages[::2])

"""Average-reward LOOP: its gains, its plan, when the policy stands still, and the name that it shares."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config.loop import AverageRewardConfig
from rlhf.models.packing import TrainingSequence
from tests.tiny_runs import make_samples, save_tiny_model
from tests.trainers.restarts import check_restart
from tests.trainers.tiny_critics import (
    completion_of,
    loop_config,
    make_with_critic,
    next_step,
    record_batches,
    weights_of,
)

SAMPLES = make_samples()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize("name", ["rollouts_per_scenario", "ppo_epsilon", "baseline"])
def test_the_other_loop_is_refused_with_both_meanings(name: str) -> None:
    with pytest.raises(ValueError, match=r"2404\.12648.*leave-one-out PPO \(arXiv 2502\.01600\)"):
        loop_config("x", algorithm={name: 6})


@pytest.mark.parametrize(
    ("gain", "message"),
    [
        ({"rate": 0.02}, "gain.rate = 0.02 is above a tenth of ensemble.polyak = 0.05"),
        ({"unit": "token"}, "unit = token with per_unit = 0"),
        ({"unit": "token", "per_unit": 1.0}, "unit = token needs span"),
        ({"unit": "turn", "per_unit": 1.0, "span": 2.0}, "set actions.view to turn"),
        ({"sessions": True, "estimator": "newton"}, "estimator = newton is for independent prompts"),
        ({"per_episode": 0.0}, "reward for no work"),
    ],
)
def test_settings_that_cannot_be(gain: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loop_config("x", algorithm={"gain": gain})


@pytest.mark.parametrize("preset", ["loop", "loop_token"])
def test_the_window_stays_where_another_setting_of_the_actor_is_given(preset: str) -> None:
    plain, changed = (AverageRewardConfig(preset=preset, actor=actor).actor for actor in ({}, {"kappa": 3.0}))
    assert plain.steps == changed.steps == 4
    assert changed == plain.model_copy(update={"kappa": 3.0})
    assert AverageRewardConfig().actor.trace_decay == 0


def test_optimism_of_the_other_trainer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimism is for recipes/optimistic_actor_critic\.py"):
        loop_config("x", algorithm={"optimism": {"bonus_scale": 2.0}})


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["rvi", "newton"])
def test_gains_of_episodes_become_the_mean_reward(estimator: str, model: str, tmp_path: Path) -> None:
    """With expectile 1/2 the values are those of what was done, and the prompts' vanish at the mean reward."""
    filled = [sample for sample in SAMPLES if sample.completion_ids and not sample.truncated]
    settings = {
        "gain": {"estimator": estimator}, "switch": {"features": 8, "nats": 1e9, "min_steps": 1, "max_steps": 1},
        "ensemble": {
            # a batch holds each episode four times
            "updates": 3_000, "episodes": 4 * len(filled), "members": 4, "expectile": 0.5, "bootstrap": 1.0,
            "prior_scale": 0.05,
        },
        "plan": {"kind": "argmax_J"},
    }  # fmt: skip
    critic = make_with_critic(loop_config(model, algorithm=settings), tmp_path)[0].critic
    critic.learn(critic.read(filled))
    assert critic.renewal.gain == pytest.approx(sum(sample.reward for sample in filled) / len(filled))
    mean = critic.renewal.gain
    if estimator == "newton":
        # one step from J = 0, where the prompts' values are their mean rewards
        assert critic.gain_K.tolist() == [0.0] * 4
    critic.exchange()
    assert critic.gain_K.tolist() == pytest.approx([mean] * 4, abs=0.02)
    if estimator == "rvi":
        assert critic.prompt_value_K.tolist() == pytest.approx([0.0] * 4, abs=0.02)


def test_the_member_with_the_highest_gain_in_the_set_is_planned_with(model: str, tmp_path: Path) -> None:
    settings = {
        "switch": {"features": 8, "nats": 1e9, "min_steps": 1, "max_steps": 1}, "plan": {"kind": "argmax_J"}
    }
    learner, _ = make_with_critic(loop_config(model, algorithm=settings), tmp_path)
    critic = learner.critic
    filled = [sample for sample in SAMPLES if sample.completion_ids]
    critic.learn(critic.read(filled))
    critic.gain_K = torch.tensor([0.1, 0.9, 0.5, 0.2], dtype=torch.float64)
    # so wrong that no radius covers it
    critic.fresh_loss_K = torch.tensor([1.0, 1e6, 1.0, 1.0], dtype=torch.float64)
    assert critic.exchange()
    assert (critic.planned_member, critic.planned_gain) == (2, 0.5)
    assert critic.metrics["gain/members_in_set"] == 3
    batch = critic.read(filled)
    assert torch.equal(critic.guidance(batch).value_S, critic.frozen(batch.state_SD)[:, 2])


def test_every_step_of_a_plan_draws_its_own_episodes(model: str, tmp_path: Path, monkeypatch) -> None:
    settings = {"plan": {"kind": "bonus", "steps": 6}, "ensemble": {"episodes": 4}}
    critic = make_with_critic(loop_config(model, algorithm=settings), tmp_path)[0].critic
    critic.learn(critic.read([sample for sample in SAMPLES if sample.completion_ids]))
    drawn = record_batches(critic, monkeypatch)
    assert critic.exchange()
    assert len(drawn) == len(set(drawn)) == 6


@pytest.mark.parametrize("kind", ["argmax_J", "bonus"])
def test_the_learning_critic_is_judged_at_its_own_gain(kind: str, model: str, tmp_path: Path) -> None:
    """Its values are those of its members' gains: at the gain of the plan before, one that fits exactly seems to be
    wrong by N times the squared difference."""
    settings = {
        "plan": {"kind": kind}, "ensemble": {"members": 4, "expectile": 0.5, "bootstrap": 1.0},
        "switch": {"kind": "excess", "tolerance": 1e-3, "held_out": 0.3, "refit_steps": 30, "max_steps": 99},
    }  # fmt: skip
    critic = make_with_critic(loop_config(model, algorithm=settings), tmp_path)[0].critic
    batch = critic.read([sample for sample in SAMPLES if sample.completion_ids])
    critic.learn(batch)
    critic.gain_K = torch.tensor([0.4, 0.5, 0.3, 0.4], dtype=torch.float64)
    member, gain = (1, 0.5) if kind == "argmax_J" else (None, 0.4)
    assert critic._plan_of(critic.online) == (member, pytest.approx(gain))
    assert critic._plan_of(critic.frozen) == ((0, 0.0) if kind == "argmax_J" else (None, 0.0))
    expected_A1 = batch.reward_A[:, None] - gain * critic.cost(batch.view)[:, None]
    assert torch.allclose(critic._guide_rewards(critic.online, batch), expected_A1)
    value_SK = critic.online(batch.state_SD).detach()
    value_S1 = value_SK.mean(1, keepdim=True) if member is None else value_SK[:, 1:2]
    assert torch.equal(critic._guide(critic.online, batch).value_SK, value_S1)
    critic.actions = 10_000
    at_its_own = critic._excess(critic.online)
    critic.planned_gain = 0.9
    assert critic._excess(critic.online) == at_its_own, "whatever is planned with now"


def test_advantages_pay_for_what_an_action_costs(model: str, tmp_path: Path) -> None:
    gain = {"unit": "token", "per_unit": 0.5, "per_episode": 2.0, "span": 3.0}
    settings = {"gain": gain, "plan": {"kind": "argmax_J"}}
    learner, algorithm = make_with_critic(loop_config(model, algorithm=settings), tmp_path)
    critic = learner.critic
    critic.gain_K = torch.full((4,), 0.3, dtype=torch.float64)
    batch = algorithm.prepare(SAMPLES, learner)
    assert critic.epoch == 1 and critic.planned_gain > 0.2
    sample = next(sample for sample in batch if sample.length == 5 and not sample.sample.truncated)
    ids = TrainingSequence(sample.sample.prompt.token_ids, sample.sample.completion_ids)
    before, between, _ = critic.guidance(critic.read([completion_of(ids)])).value_S.tolist()
    first = -critic.planned_gain * 0.5 * 3 + between - before
    last = sample.sample.reward - critic.planned_gain * (0.5 * 2 + 2.0) - between
    assert sample.advantages == pytest.approx([first] * 3 + [last] * 2, abs=1e-5)


def test_the_policy_stands_still_between_windows(model: str, tmp_path: Path) -> None:
    settings = {"actor": {"steps": 2}, "switch": {"features": 8, "nats": 1e9, "min_steps": 1, "max_steps": 4}}
    learner, algorithm = make_with_critic(loop_config(model, algorithm=settings), tmp_path)
    samples, moved = SAMPLES, []
    for step in range(1, 10):
        before = weights_of(learner.policy)
        learner.update(algorithm.prepare(samples, learner), algorithm, step)
        moved.append(not torch.equal(weights_of(learner.policy), before))
        samples = next_step(samples)
    # exchanges at the fourth and the eighth step
    assert moved == [False, False, False, True, True, False, False, True, True]


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(model: str, tmp_path: Path) -> None:
    check_restart("loop", loop_config(model), tmp_path)

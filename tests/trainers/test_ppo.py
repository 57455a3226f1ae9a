"""PPO's critic: what it learns, what it leaves alone, and that splits and restarts change nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.algorithms.generalised_advantages import generalised_advantages
from rlhf.config.ppo import PPOConfig
from rlhf.models.loading import load_policy
from rlhf.models.value_head import ValueHead
from tests.invariants.ppo_step import make_actor_critic, ppo_config, returns, sequences
from tests.tiny_runs import make_samples, save_tiny_model, tiny_config
from tests.trainers.restarts import check_restart

SAMPLES = make_samples()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def flat_weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_a_bounded_head_begins_in_the_middle_and_never_leaves_its_bounds() -> None:
    head = ValueHead(3, bounds=(-1.0, 2.0))
    assert head(torch.randn(5, 3)).tolist() == [0.5] * 5
    torch.nn.init.constant_(head.linear.weight, 1e3)
    values = head(torch.randn(100, 3, generator=torch.Generator().manual_seed(0))).detach()
    assert float(values.min()) >= -1 and float(values.max()) <= 2
    assert ValueHead(3)(torch.randn(5, 3)).tolist() == [0.0] * 5


@pytest.mark.parametrize("trunk", ["separate", "policy"])
def test_the_critic_learns_returns_and_leaves_the_policy_alone(trunk: str, model: str, tmp_path: Path) -> None:
    config = ppo_config(model, critic={"trunk": trunk, "head_lr": 0.03, "optimizer": {"type": "adamw", "lr": 3e-3}})
    learner, _ = make_actor_critic(config, tmp_path)
    before = flat_weights(learner.policy)
    critic = learner.critic
    old = critic.values(sequences(SAMPLES))
    critic.update(sequences(SAMPLES), returns(SAMPLES), old)
    first = critic.metrics["critic/loss"]
    for _ in range(30):
        critic.update(sequences(SAMPLES), returns(SAMPLES), old)
    assert critic.metrics["critic/loss"] < (0.2 if trunk == "separate" else 0.9) * first
    assert torch.equal(flat_weights(learner.policy), before)
    assert all(parameter.grad is None for parameter in learner.policy.parameters())
    values = critic.values(sequences(SAMPLES))
    critic.update(sequences(SAMPLES), returns(SAMPLES), values)
    assert critic.metrics["critic/explained_variance"] > (0.8 if trunk == "separate" else 0.05)


def test_advantages_are_of_the_values_before_the_critic_learns(model: str, tmp_path: Path) -> None:
    learner, algorithm = make_actor_critic(ppo_config(model), tmp_path)
    batch = algorithm.prepare(SAMPLES, learner)
    for sample in batch:
        rewards = [0.0] * sample.length
        if rewards:
            rewards[-1] = sample.sample.reward
        # the head begins at the middle of its bounds
        expected = generalised_advantages(rewards, [0.5] * sample.length, trace_decay=0.95)
        assert sample.advantages == pytest.approx(expected, abs=1e-6)
    assert any(value != 0.5 for row in learner.critic.values(sequences(SAMPLES)) for value in row)


def test_token_advantages_reach_the_loss(model: str, tmp_path: Path) -> None:
    """The policy's gradient is that of sum w A log pi, token by token."""
    learner, algorithm = make_actor_critic(ppo_config(model), tmp_path)
    batch = algorithm.prepare(SAMPLES, learner)
    caught = []
    learner.optimizer.step = lambda: caught.append(torch.cat([m.grad.flatten() for m in learner.weights.masters]))
    learner.update(batch, algorithm, 1)
    learned = [sample for sample in batch if sample.length]
    total = sum(sample.length for sample in batch)
    policy, loss = load_policy(learner.config.model.model_copy(update={"attention": "padded"})), 0.0
    for sample in learned:
        ids = torch.tensor([[*sample.sample.prompt.token_ids, *sample.sample.completion_ids]])
        logits = policy.causal_lm(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
        logps = logits.log_softmax(-1)[-sample.length - 1 : -1].gather(1, ids[0, -sample.length :, None])[:, 0]
        loss = loss - (torch.tensor(sample.advantages) * logps).sum() / total
    loss.backward()
    expected = torch.cat([parameter.grad.flatten() for _, parameter in policy.named_parameters()])
    assert float((caught[0] - expected).norm() / expected.norm()) < 1e-4


def test_the_policy_stands_still_while_the_critic_learns_alone(model: str, tmp_path: Path) -> None:
    learner, algorithm = make_actor_critic(ppo_config(model, critic={"pretrain_steps": 1}), tmp_path)
    before = flat_weights(learner.policy)
    metrics = learner.update(algorithm.prepare(SAMPLES, learner), algorithm, 1)
    assert torch.equal(flat_weights(learner.policy), before)
    assert metrics["tokens/trained"] == 0 and metrics["critic/loss"] > 0
    assert learner.critic.updates == learner.updates == 1


def test_whitened_advantages_have_mean_0_and_spread_1(model: str, tmp_path: Path) -> None:
    learner, algorithm = make_actor_critic(ppo_config(model, algorithm={"whiten": True}), tmp_path)
    flat = torch.tensor([a for sample in algorithm.prepare(SAMPLES, learner) for a in sample.advantages])
    assert float(flat.mean()) == pytest.approx(0, abs=1e-6)
    assert float(flat.std(unbiased=False)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bounds": [1.0, 0.0]}, r"bounds = \[1.0, 0.0\] is no range"),
        ({"attention": "padded"}, "the critic reads the states of packed batches"),
        ({"lora": {"rank": 2}}, "set algorithm.critic.trunk to policy"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    critic = changes if "bounds" in changes else {}
    with pytest.raises(ValueError, match=message):
        tiny_config("x", schema=PPOConfig, model={"path": "x"} | (changes if not critic else {}),
                    algorithm={"critic": critic})


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(model: str, tmp_path: Path) -> None:
    check_restart("ppo", ppo_config(model, critic={"pretrain_steps": 1}), tmp_path)

"""Only the assistant's tokens are learned: gradients against autograd with an explicit mask, any split, PPO by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config.ppo import PPOConfig
from rlhf.config.rollouts import SamplingConfig, TransformersEngineConfig
from rlhf.data.sources import load_prompts
from rlhf.data.types import Prompt, Sample
from rlhf.models.loading import load_policy, load_tokenizer
from rlhf.models.packing import forwarded_tokens, pack
from rlhf.rewards.scoring import RewardScorer
from rlhf.rollouts.dialogues import Dialogues
from rlhf.rollouts.requests import make_requests
from rlhf.rollouts.transformers_engine import TransformersEngine
from rlhf.trainers.grpo import PolicyGradient
from rlhf.training.batch import training_sequence
from tests.environments.sessions import dialogue_samples, own_mask
from tests.invariants.one_step import distance
from tests.invariants.ppo_step import make_actor_critic
from tests.tiny_runs import make_learner, save_tiny_model, tiny_config

SESSIONS: dict[str, Any] = {
    "data": {"type": "number_guessing", "numbers": 4, "max_prompt_tokens": 96},
    "environment": {"type": "number_guessing", "turns": 3},
    "rewards": {"functions": [{"type": "environment"}]},
    "sampling": {"samples_per_prompt": 4, "max_tokens": 4},
}
WHOLE, SOME, SINGLE = 10_000, 48, 1
SAMPLES = dialogue_samples()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def config_of(model: str, budget: int = WHOLE, attention: str = "packed", schema=None, **changes: Any):
    sections = SESSIONS | {
        "model": {"path": model, "dtype": "float32", "attention": attention},
        "batch": {"steps": 4, "prompts_per_step": 6, "tokens_per_micro_batch": budget, "max_grad_norm": 1e9},
        "guards": {"ratio_tolerance": 1e9},
    }
    kind = {} if schema is None else {"schema": schema}
    return tiny_config(model, **kind, **(sections | changes))


def gradient(model: str, folder: Path, budget: int, attention: str = "packed", **algorithm: Any) -> torch.Tensor:
    config = config_of(model, budget, attention, algorithm={"dynamic_sampling": {"max_refills": 0}} | algorithm)
    learner, caught = make_learner(config, folder), []
    learner.optimizer.step = lambda: caught.append(torch.cat([m.grad.flatten() for m in learner.weights.masters]))
    policy_gradient = PolicyGradient(config.algorithm, 4)
    learner.update(policy_gradient.prepare(SAMPLES, learner), policy_gradient, 1)
    return caught[0]


def plain_gradient(model: str, denominator: str) -> torch.Tensor:
    """Of - sum over all completion tokens of mask x weight x advantage x log pi, one sample after the other."""
    policy, loss = load_policy(config_of(model).model.model_copy(update={"attention": "padded"})), 0.0
    rewards = torch.tensor([sample.reward for sample in SAMPLES]).view(-1, 4)
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    masks = [torch.tensor(own_mask(sample), dtype=torch.float32) for sample in SAMPLES]
    total = sum(float(mask.sum()) for mask in masks)
    for sample, advantage, mask_L in zip(SAMPLES, advantages, masks, strict=True):
        ids = torch.tensor([[*sample.prompt.token_ids, *sample.completion_ids]])
        logits = policy.causal_lm(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
        length = len(sample.completion_ids)
        logp_L = logits.log_softmax(-1)[-length - 1 : -1].gather(1, ids[0, -length:, None])[:, 0]
        weight = {
            "token": 1 / total, "sequence": 1 / (len(SAMPLES) * float(mask_L.sum())),
            # 3 turns of 4 tokens are the most that a policy can write
            "constant": 1 / (len(SAMPLES) * 12),
        }[denominator]  # fmt: skip
        loss = loss - weight * advantage * (mask_L * logp_L).sum()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for _, parameter in policy.named_parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("denominator", ["token", "sequence", "constant"])
def test_the_gradient_is_that_of_an_explicit_mask(model: str, tmp_path: Path, denominator: str) -> None:
    found = gradient(model, tmp_path, WHOLE, loss="reinforce", denominator=denominator, importance="token")
    assert distance(found, plain_gradient(model, denominator)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["grpo", "gspo", "cispo"])
def test_any_split_packed_or_padded(model: str, tmp_path: Path, preset: str) -> None:
    whole = gradient(model, tmp_path, WHOLE, preset=preset, entropy_coefficient=0.01)
    for budget, attention in [(SOME, "packed"), (SINGLE, "packed"), (WHOLE, "padded"), (SINGLE, "padded")]:
        again = gradient(model, tmp_path, budget, attention, preset=preset, entropy_coefficient=0.01)
        assert distance(again, whole) < 1e-5, (budget, attention)


@pytest.mark.slow
def test_targets_and_log_probs(model: str, tmp_path: Path) -> None:
    """Targets are the ids under the mask; what is forwarded ends before the last of them."""
    sequences = [training_sequence(sample) for sample in SAMPLES]
    packed = pack(sequences)
    expected = [t for s in SAMPLES for t, own in zip(s.completion_ids, own_mask(s), strict=True) if own]
    assert packed.target_N.tolist() == expected
    assert packed.tokens == forwarded_tokens(sequences)
    assert packed.lengths == tuple(sum(own_mask(sample)) for sample in SAMPLES)
    policy = load_policy(config_of(model).model)
    padded = load_policy(config_of(model).model.model_copy(update={"attention": "padded"}))
    torch.testing.assert_close(policy(packed).logp_N, padded(packed).logp_N, rtol=0, atol=2e-5)
    alone = torch.cat([policy(pack([sequence])).logp_N for sequence in sequences])
    torch.testing.assert_close(policy(packed).logp_N, alone, rtol=0, atol=2e-5)


def session(turns, rewards, reward) -> Sample:
    ids = tuple(range(5, 5 + sum(map(sum, turns))))
    prompt = Prompt("s:0", (1, 2, 3), [{"role": "user", "content": "?"}])
    return Sample(prompt, 0, ids, (-1.0,) * len(ids), "length", 0, 0, rewards={}, reward=reward, turns=turns,
                  turn_rewards=rewards)  # fmt: skip


def test_ppo_pays_each_turn_at_its_last_own_token(model: str, tmp_path: Path) -> None:
    """By hand: values are 0.5 at first; own tokens are 0 1 | 2 | 3 4, paid 2 x (1, 0, 1), and 0.25 at the end."""
    functions = [{"type": "environment", "weight": 2.0}, {"type": "length", "target_tokens": 20, "weight": 1.0}]
    algorithm = {"trace_decay": 0.5, "critic": {"bounds": [-6.0, 7.0]}}
    config = config_of(model, schema=PPOConfig, algorithm=algorithm, rewards={"functions": functions})
    learner, actor_critic = make_actor_critic(config, tmp_path)
    sample = session(((2, 3), (1, 2), (2, 1)), (1.0, 0.0, 1.0), reward=4.25)
    (made,) = actor_critic.prepare([sample], learner)
    delta = [0.0, 2.0, 0.0, 0.0, 2.25 - 0.5]  # r + V' - V with V = 0.5, and nothing behind the last token
    by_hand = [sum(0.5**k * delta[t + k] for k in range(5 - t)) for t in range(5)]
    assert made.advantages == pytest.approx(by_hand, abs=1e-6)
    assert made.length == 5
    assert learner.critic.metrics["critic/target_mean"] == pytest.approx((4.25 + 4.25 + 2.25 * 3) / 5)


def test_ppo_without_turns_is_as_before(model: str, tmp_path: Path) -> None:
    config = config_of(model, schema=PPOConfig, algorithm={"critic": {"bounds": [0.0, 3.0]}})
    _, actor_critic = make_actor_critic(config, tmp_path)
    plain = replace(session(((4, 0),), (0.3,), 0.3), turns=(), turn_rewards=())
    assert actor_critic._token_rewards(plain, None, 1.0) == [0.0, 0.0, 0.0, 0.3]


@pytest.mark.slow
def test_engine_and_learner_agree_on_own_tokens(model: str, tmp_path: Path) -> None:
    """On policy the ratio is 1 for every token that the policy wrote; the environment's have none."""
    # a bonus too small to see: groups without a signal are forwarded too
    config = config_of(model, guards={"ratio_tolerance": 1e-3}, algorithm={"entropy_coefficient": 1e-9})
    tokenizer = load_tokenizer(config.model)
    source = load_prompts(config.data, tokenizer, seed=0)
    engine = TransformersEngine(
        model, config=TransformersEngineConfig(), tokenizer=tokenizer, dtype=torch.float32
    )
    dialogues = Dialogues(config.environment, tokenizer)
    requests = make_requests([source[index] for index in range(6)], 4, 0, 1)
    with RewardScorer(config.rewards) as scorer:
        samples = scorer.score(dialogues.play(engine, requests, SamplingConfig(max_tokens=4)))
    learner, algorithm = make_learner(config, tmp_path), PolicyGradient(config.algorithm, 4)
    batch = algorithm.prepare(samples, learner)
    for sample, logps in zip(samples, learner.logps(batch), strict=True):
        assert len(sample.turns) == 3 and sample.rewards["environment"] == sum(sample.turn_rewards)
        assert logps == pytest.approx(sample.own(sample.logps), abs=1e-3)
    assert abs(learner.update(batch, algorithm, 1)["policy/engine_ratio_mean"] - 1) < 1e-4

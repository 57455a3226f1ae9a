"""Critics over candidate tokens and policies that are matched to them, on a random model of two layers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer

from rlhf.algorithms.mirror_descent import mirror_target, with_rest
from rlhf.config.sources import ConfigError
from rlhf.data.episodes import Episode
from rlhf.data.errors import DataError
from rlhf.data.offline_episodes import load_offline_samples
from rlhf.models.embedded import resolve_model_path
from rlhf.models.loading import load_policy
from rlhf.models.packing import TrainingSequence, pack
from rlhf.trainers.build_critic import make_critic
from rlhf.training.critics.optimistic import OptimisticCritic
from rlhf.training.critics.transitions import episode_of, transitions_of
from rlhf.training.learner import Learner
from tests.tiny_runs import save_tiny_model
from tests.trainers.restarts import check_restart
from tests.trainers.tiny_critics import make_with_critic, optimistic_config, record_batches, weights_of
from tests.trainers.tiny_language import VOCABULARY, as_of, save_tiny_language, sentences, token_config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_language(tmp_path_factory.mktemp("language"))


def offline_episodes(critic: OptimisticCritic, count: int = 12) -> list[Episode]:
    samples = sentences(count, seed=9)
    readings = critic.reader([TrainingSequence(s.prompt.token_ids, s.completion_ids) for s in samples])
    return [
        episode_of(s, r, critic.settings.actions, name=f"offline:{i}", epoch=0, members=4, bootstrap=1.0, seed=0)
        for i, (s, r) in enumerate(zip(samples, readings, strict=True))
    ]


def with_offline(config, folder: Path) -> tuple[Learner, OptimisticCritic]:
    """A learner whose critic has twelve offline episodes."""
    learner, _ = make_with_critic(config, folder)
    critic = learner.critic
    own = OptimisticCritic(
        critic.reader, critic.form, 32, config, config.algorithm, learner.accelerator, offline_episodes(critic)
    )
    learner.critic = own
    return learner, own


def test_values_of_tokens_have_no_axis_of_the_vocabulary(model: str, tmp_path: Path) -> None:
    learner, _ = make_with_critic(token_config(model), tmp_path)
    batch = learner.critic.read(sentences())
    found = learner.critic.form.predict(learner.critic.online, batch)
    states = sum(len(s.completion_ids) + 1 for s in sentences())
    assert found.q_SKm.shape == (states, 4, 6) and found.value_SK.shape == (states, 4)
    assert batch.candidate_id_Sm.shape == (states, 6), "five likely tokens and the one that was taken"
    largest = max(parameter.numel() for parameter in learner.critic.online.parameters())
    assert largest < VOCABULARY * 32 * 256, "nor has a parameter"


def test_candidates_are_the_reference_s(model: str, tmp_path: Path) -> None:
    learner, _ = make_with_critic(token_config(model), tmp_path)
    batch = learner.critic.read(sentences())
    logits = learner.reference.causal_lm.get_output_embeddings()(batch.state_SD)
    logp = logits.log_softmax(-1)
    found = batch.candidate_logp_Sm
    expected = logp.gather(1, batch.candidate_id_Sm)
    present = ~found.isneginf()
    assert torch.allclose(found[present], expected[present], atol=5e-3), "half precision"
    taken = torch.tensor([token for s in sentences() for token in s.completion_ids])
    assert torch.equal(batch.candidate_id_Sm[batch.view.state_A, 0], taken)


@pytest.mark.parametrize(("truncation", "goes_on"), [("bootstrap", True), ("end", False)])
def test_what_was_cut_off_is_worth_what_comes_behind_or_is_over(
    truncation: str, goes_on: bool, model: str, tmp_path: Path
) -> None:
    config = token_config(model, actions={"view": "token", "truncation": truncation}, ensemble={"path_spans": []})
    critic = make_with_critic(config, tmp_path)[0].critic
    batch = critic.read(sentences())
    slow = critic.form.predict(critic.target, batch)
    online = slow._replace(q_SKm=torch.zeros_like(slow.q_SKm))
    losses_AK = critic.form.losses(online, slow, batch, critic._rewards(batch)).detach()
    last = batch.view.last_action_B
    values = critic.form._state_values(slow, batch).detach()[batch.view.next_state_A[last]]
    for row, sample in enumerate(sentences()):
        after = values[row] if sample.truncated and goes_on else torch.zeros(4)
        expected = (sample.reward + after).clamp(0, 1).square()
        assert torch.allclose(losses_AK[last[row]], expected, atol=1e-6)


@pytest.mark.parametrize("preset", ["nora_token", "nora_paper", "douhua"])
def test_the_policy_learns_the_distribution_that_the_critic_makes(preset: str, model: str, tmp_path: Path) -> None:
    """Loss and gradient by brute force over the whole vocabulary."""
    learner, algorithm = make_with_critic(token_config(model, preset), tmp_path)
    critic = learner.critic
    with torch.no_grad():
        for parameter in critic.online.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    samples, version = sentences(), 0
    while critic.epoch == 0:
        batch = algorithm.prepare(as_of(samples, version), learner)
        version += 1
    learned = [sample for sample in batch if sample.learned]
    assert len(learned) == len(samples)
    fresh = critic.read(as_of(samples, version))
    base = fresh.candidate_logp_Sm
    if preset == "douhua":
        # the policy has not moved yet: it is the reference in single precision
        base = critic.form.policy_logps(fresh)
    target_SC = mirror_target(with_rest(base), critic.token_values(fresh), algorithm.mirror.kappa)
    assert algorithm.mirror.kappa > 1
    packed = pack(fresh.sequences)
    policy = learner.policy
    hidden = policy.hidden(packed)
    logp_NV = policy.causal_lm.get_output_embeddings()(hidden).log_softmax(-1)
    state_A = fresh.view.state_A
    ids, target = fresh.candidate_id_Sm[state_A], target_SC[state_A]
    loss = torch.zeros(())
    for row in range(len(state_A)):
        rest = torch.ones(VOCABULARY, dtype=torch.bool)
        for place, token in enumerate(ids[row].tolist()):
            p = target[row, place].exp()
            if p > 0:
                loss = loss + p * (target[row, place] - logp_NV[row, token])
                rest[token] = False
        p = target[row, -1].exp()
        loss = loss + p * (target[row, -1] - logp_NV[row][rest].logsumexp(0))
    (loss / len(state_A)).backward()
    expected = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    recorded = {}
    step = learner.optimizer.step

    def record() -> None:
        recorded.update({n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None})
        step()

    learner.optimizer.step = record
    metrics = learner.update(batch, algorithm, 1)
    assert metrics["loss"] == pytest.approx(float(loss.detach()) / len(state_A), rel=1e-4)
    assert recorded.keys() == expected.keys() and float(metrics["gradient/norm"]) > 1e-3
    for name, gradient in expected.items():
        assert torch.allclose(recorded[name], gradient, atol=2e-5), name


def test_any_split_into_micro_batches_gives_the_same_step(model: str, tmp_path: Path) -> None:
    config, found = token_config(model, actor={"kind": "logit_match", "replay_episodes": 4}), []
    for budget in (12, 1_000):
        batch = config.batch.model_copy(update={"tokens_per_micro_batch": budget})
        learner, algorithm = make_with_critic(config.model_copy(update={"batch": batch}), tmp_path)
        learned = algorithm.prepare(sentences(), learner)
        assert len(learned) == 8 + 4
        metrics = learner.update(learned, algorithm, 1)
        found.append((metrics["loss"], metrics["gradient/norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4) and found[0][1] > 1e-3


def test_offline_and_online_episodes_have_their_exact_shares(model: str, tmp_path: Path) -> None:
    config = token_config(model, offline={"share": 0.25, "final_share": 0.25}, ensemble={"episodes": 8})
    _, critic = with_offline(config, tmp_path)
    critic.learn(critic.read(sentences()))
    for step in range(10):
        drawn = critic.memory.buffer.batch(step, 8)
        names = [episode.id.startswith("offline") for episode in drawn.episodes]
        assert sum(names) == drawn.offline == 2
    assert critic.actions == sum(len(s.completion_ids) for s in [*sentences(), *sentences(12, seed=9)])


def test_what_offline_episodes_cover_is_not_new(model: str, tmp_path: Path) -> None:
    config = token_config(model)
    alone = make_with_critic(config, tmp_path)[0].critic
    _, helped = with_offline(config, tmp_path)
    samples = sentences(12, seed=9)
    alone.learn(alone.read(samples))
    helped.learn(helped.read(samples))
    assert helped.metrics["switch/nats_gained"] < 0.7 * alone.metrics["switch/nats_gained"]


def test_the_engine_gets_the_policy_at_exchanges_alone(model: str, tmp_path: Path) -> None:
    config = token_config(model, sync={"when": "switch"}, switch={"nats": 1e9, "max_steps": 3})
    learner, algorithm = make_with_critic(config, tmp_path)
    synced, before = [], weights_of(learner.policy)
    for step in range(8):
        learner.update(algorithm.prepare(sentences(version=step), learner), algorithm, step + 1)
        now = weights_of(learner.policy)
        assert algorithm.should_sync() == (not torch.equal(now, before)), "exactly where the policy moved"
        synced.append(algorithm.should_sync())
        before = now
    assert synced == [False, False, True, False, False, True, False, False]
    assert sum(synced) == learner.critic.epoch == algorithm.syncs


@pytest.mark.parametrize(
    ("reset", "kappas", "restarts"),
    [
        ("jump", [20.0, 20.0, 20.0, 20.0], False),
        ("target", [5.0, 10.0, 5.0, 10.0], False),
        ("hard", [5.0, 10.0, 5.0, 10.0], True),
    ],
)
def test_resets(reset: str, kappas: list[float], restarts: bool, model: str, tmp_path: Path) -> None:
    config = token_config(
        model, actor={"kind": "logit_match", "reset": reset, "saturation": 4}, switch={"nats": 1e9, "max_steps": 2}
    )
    learner, algorithm = make_with_critic(config, tmp_path)
    reference, found = weights_of(learner.reference), []
    for step in range(5):
        optimizer = learner.optimizer
        batch = algorithm.prepare(sentences(version=step), learner)
        if learner.critic.epoch:
            found.append(algorithm.mirror.kappa)
        if step == 3:
            assert torch.equal(weights_of(learner.policy), reference) == restarts
            assert (learner.optimizer is not optimizer) == restarts
        learner.update(batch, algorithm, step + 1)
    assert found == kappas


def test_a_policy_gradient_does_not_learn_from_the_policy_that_a_hard_reset_left(model: str, tmp_path: Path) -> None:
    config = token_config(
        model, "nora", actor={"reset": "hard", "saturation": 4, "steps": 1}, switch={"nats": 1e9, "max_steps": 3},
        actions={"chunk_tokens": 3},
    )  # fmt: skip
    learner, algorithm = make_with_critic(config, tmp_path)
    learned, synced = [], []
    for step in range(6):
        learner.update(algorithm.prepare(sentences(version=step), learner), algorithm, step + 1)
        learned.append(bool(learner.critic.metrics["actor/learns"]))
        synced.append(algorithm.should_sync())
    # exchanges in the third and the sixth step
    assert learned == [False, False, False, True, False, False]
    assert synced == [False, False, True, True, False, True], "and the engine gets the reference's weights at once"


def test_kept_episodes_are_divided_over_minibatches(model: str, tmp_path: Path) -> None:
    config = token_config(model, actor={"kind": "logit_match", "replay_episodes": 7})
    batch = config.batch.model_dump() | {"minibatches": 2}
    config = type(config).model_validate(config.model_dump() | {"batch": batch})
    learner, algorithm = make_with_critic(config, tmp_path)
    for step in range(2):
        batch = algorithm.prepare(sentences(version=step), learner)
        learner.update(batch, algorithm, step + 1)
    assert len(batch) == 8 + 6


def test_the_step_of_a_hard_reset_has_no_ratio_to_the_policy_that_was_left(model: str, tmp_path: Path) -> None:
    config = token_config(model, actor={"reset": "hard"}, switch={"nats": 1e9, "max_steps": 2})
    learner, algorithm = make_with_critic(config, tmp_path)
    ratios = [
        learner.update(algorithm.prepare(sentences(version=step), learner), algorithm, step + 1)
        for step in range(3)
    ][1:]  # fmt: skip
    reset, after = (metrics["policy/engine_ratio_mean"] for metrics in ratios)
    assert reset == 1 and after != 1, "sentences are drawn by no policy: their ratio to one is anything"


@pytest.mark.parametrize("reset", ["target", "none"])
def test_the_pull_of_a_policy_gradient_is_one_over_kappa(reset: str, model: str, tmp_path: Path) -> None:
    config = token_config(
        model, "nora", actor={"reset": reset, **({"saturation": 4} if reset == "target" else {})},
        switch={"nats": 1e9, "max_steps": 2}, actions={"chunk_tokens": 3},
    )  # fmt: skip
    learner, algorithm = make_with_critic(config, tmp_path)
    for step in range(2):
        batch = algorithm.prepare(sentences(version=step), learner)
    assert algorithm.has_kl_loss == (reset == "target")
    if reset == "target":
        assert algorithm.kl_coefficient == 1 / 5
        sample = next(sample for sample in batch if sample.length)
        expected = learner.reference_logps([sample])[0]
        assert sample.reference_logps == pytest.approx(expected, abs=1e-5)


def test_an_excess_exchange_needs_a_better_critic(model: str, tmp_path: Path) -> None:
    """Above the threshold the learning critic is trained until it fits; one that does not is refused."""
    switch = {
        "kind": "excess", "tolerance": 1e-4, "refit_steps": 20, "member_steps": 40, "held_out": 0.4, "max_steps": 99
    }  # fmt: skip
    config = token_config(model, switch=switch, ensemble={"target": "soft", "path_spans": [], "lr": 0.01})
    learner, algorithm = make_with_critic(config, tmp_path)
    critic, causes = learner.critic, []
    for step in range(6):
        algorithm.prepare(sentences(version=step), learner)
        causes.append(critic.metrics["switch/exchanged"] or critic.metrics.get("switch/refused", 0))
        assert critic.metrics["switch/threshold"] == pytest.approx(5 * critic.tolerance)
    assert critic.epoch >= 1 and any(causes)
    assert len(critic.memory.held_out) + len(critic.memory.buffer.online) == 48 and len(critic.memory.held_out) > 5
    held_out, learned = ({e.id for e in store} for store in (critic.memory.held_out, critic.memory.buffer.online))
    assert not held_out & learned, "nobody learns from held-out episodes"
    frozen = weights_of(critic.frozen)
    with torch.no_grad():
        for parameter in critic.online.parameters():
            parameter.add_(10.0)  # spoiled beyond what 0 steps of training repair
    object.__setattr__(critic.settings.switch, "member_steps", 0)
    critic.controller.max_iters = 1  # an exchange is due, whatever the excess
    refusals = critic.controller.refusals
    critic.exchange()
    assert critic.controller.refusals == refusals + 1 and torch.equal(weights_of(critic.frozen), frozen)


def test_every_step_of_a_refit_draws_its_own_episodes(model: str, tmp_path: Path, monkeypatch) -> None:
    switch = {"kind": "excess", "tolerance": 1e9, "refit_steps": 6, "held_out": 0.2, "max_steps": 99}
    config = token_config(model, switch=switch, ensemble={"target": "soft", "path_spans": [], "episodes": 4})
    critic = make_with_critic(config, tmp_path)[0].critic
    critic.learn(critic.read(sentences(24)))
    drawn = record_batches(critic, monkeypatch)
    critic.exchange()
    assert len(drawn) == len(set(drawn)) == 6


@pytest.mark.parametrize("kind", ["elliptic", "mex", "max_in_set", "lme", "infogain"])
def test_kinds_of_optimism_raise_values(kind: str, model: str, tmp_path: Path) -> None:
    """What each adds to the members' mean."""
    optimism = {} if kind == "infogain" else {"kind": kind, "weight": 5.0}
    switch = {"kind": "infogain", "nats": 0.1} if kind == "infogain" else {}
    config = token_config(
        model, "nora", optimism=optimism, switch=switch, actions={"chunk_tokens": 3}, ensemble={"updates": 30}
    )
    critic = make_with_critic(config, tmp_path)[0].critic
    batch = critic.read(sentences())
    critic.learn(batch)
    assert critic.exchange()
    mean_S = critic.form.predict(critic.frozen, batch).value_SK.mean(1).detach()
    value_S = critic.guidance(batch).value_S
    if kind == "elliptic":
        bonus = critic._bonus(batch)
        assert float(bonus.min()) > 0 and torch.allclose(value_S, mean_S)
        critic._count(critic.read(sentences(version=1)).episodes)
        assert float(critic._bonus(batch).mean()) < float(bonus.mean()), "less new than before"
    elif kind == "mex":
        plain = make_with_critic(
            token_config(model, "nora", optimism={"kind": "none"}, actions={"chunk_tokens": 3},
                         ensemble={"updates": 30}), tmp_path)[0].critic  # fmt: skip
        plain.learn(plain.read(sentences()))
        plain.exchange()
        first_B = batch.view.first_state_B
        assert float(value_S[first_B].mean()) > float(plain.guidance(batch).value_S[first_B].mean()) + 0.02
    else:
        assert bool((value_S >= mean_S - 1e-6).all()) and float((value_S - mean_S).max()) > 1e-4


def test_reference_returns_teach_until_the_first_exchange(model: str, tmp_path: Path) -> None:
    config = token_config(
        model, "nora", actions={"chunk_tokens": 8},
        ensemble={"target": "mc_ref", "temperature": 0.2, "updates": 600, "bootstrap": 1.0, "prior_scale": 0.0,
                  "lr": 0.01, "episodes": 8},
    )  # fmt: skip
    critic = make_with_critic(config, tmp_path)[0].critic
    samples = [sample for sample in sentences(8) if sample.prompt.id == "p:0"]
    batch = critic.read(samples)
    critic.learn(batch)
    value = float(critic.form.predict(critic.online, batch).value_SK[batch.view.first_state_B].mean().detach())
    returns = torch.tensor([sample.reward for sample in samples])
    assert value == pytest.approx(0.2 * float((returns / 0.2).exp().mean().log()), abs=0.03)
    critic.exchange()
    later = critic.read(as_of(samples, 1))
    own = critic.form.predict(critic.online, later)
    assert float(critic.form.losses(own, own, later, critic._rewards(later)).abs().max()) == 0


def test_the_next_state_of_a_dialogue_lies_behind_the_environment(model: str, tmp_path: Path) -> None:
    config = token_config(model, "nora", actions={"view": "turn"})
    critic = make_with_critic(config, tmp_path)[0].critic
    sample = sentences(1)[0]
    ids = (7, 8, 9, 10, 11, 12)
    sample = replace(
        sample, completion_ids=ids, logps=(-1.0,) * 6, turns=((2, 1), (2, 1)), turn_rewards=(0.25, 0.5), reward=0.75
    )
    reading = critic.reader([TrainingSequence(sample.prompt.token_ids, ids)])[0]
    episode = episode_of(
        sample, reading, critic.settings.actions, name="e", epoch=0, members=4, bootstrap=1.0, seed=0, turn_weight=1.0
    )
    batch = critic.transitions([episode])
    assert batch.view.position_S.tolist() == [0, 3, 6] and batch.view.tokens_A.tolist() == [2, 2]
    assert batch.reward_A.tolist() == [0.25, 0.5]
    assert np.flatnonzero(batch.episodes[0].rewards).tolist() == [1, 4]
    again = transitions_of(batch.episodes, config.algorithm.actions, critic.device, with_candidates=False)
    assert torch.equal(again.state_SD, batch.state_SD)


def test_the_critic_is_made_for_what_it_is_asked(model: str, tmp_path: Path) -> None:
    for algorithm, message in [
        (dict(preset="nora", actions={"view": "chunk"}, ensemble={"target": "soft"}), "needs actions.view token"),
        (dict(preset="nora", actor={"kind": "logit_match"}), "no values of tokens to match"),
        (dict(preset="noah"), "give offline.path"),
        (dict(preset="nora_hybrid"), "give offline.path"),
        (dict(preset="nora", ensemble={"path_spans": [8]}), "path consistency holds between soft values"),
        (dict(preset="nora", sync={"when": "switch"}, actor={"reset": "target"}), "set actor.reset to jump"),
        (dict(preset="nora", sync={"when": "switch"}, actor={"reset": "hard"}), "kappa would never grow"),
        (dict(preset="nora_paper", sync={"when": "switch"}), "actor.reset = target: kappa would never grow"),
        (dict(preset="nora", actor={"replay_episodes": 4}), "actor.kind = pg: it learns from no kept states"),
        (dict(preset="nora", actor={"reset": "none", "kappa": 3.0}), "actor.kappa: a policy gradient that is never"),
        (dict(preset="nora_token", mask_truncated=True), "mask_truncated changes the policy's loss"),
        (dict(preset="nora_token", entropy_coefficient=0.1), "entropy_coefficient changes the policy's loss"),
        (dict(preset="nora_token", clip_high=0.3), "clip_high changes the policy's loss"),
        (dict(preset="nora_token", mismatch={"level": "token"}), "mismatch.level changes the policy's loss"),
        (dict(preset="nora_token", whiten=True), "whiten changes the policy's loss"),
        (dict(preset="nora", ensemble={"target": "mc_ref"}, offline={"path": "x.jsonl"}), "leave offline out"),
        (dict(preset="nora", ensemble={"target": "mc_ref"}, optimism={"kind": "elliptic"}), "learns returns"),
        (dict(preset="nora", ensemble={"target": "mc_ref"}, actions={"bounds": [0, 8]}), "set it to at least 0.32"),
        (dict(preset="nora_token", optimism={"kind": "elliptic"}), "of states that actions led to"),
    ]:
        with pytest.raises(ValueError, match=message):
            token_config("x", **algorithm)


def offline_file(folder: Path) -> str:
    """Sums with right answers and a wrong one."""
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {a} + 2? Answer with only the number."}],
         "completion": [{"role": "assistant", "content": str(a + 2 + a % 3)}], "reward": float(a % 3 == 0)}
        for a in range(12)
    ]  # fmt: skip
    file = folder / "offline.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


CRITICS = {"members": 4, "updates": 4, "episodes": 8, "candidates": 5}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {
            "preset": "nora_token", "ensemble": CRITICS | {"lr": 0.01, "path_spans": []},
            "actor": {"reset": "hard", "replay_episodes": 4},
            "switch": {"kind": "excess", "tolerance": 1e-9, "refit_steps": 5, "member_steps": 20, "min_steps": 1},
        },
        # stopped in the middle of the first epoch
        {
            "preset": "nora_hybrid", "actions": {"chunk_tokens": 3}, "ensemble": CRITICS, "sync": {"when": "switch"},
            "switch": {"features": 8, "nats": 1e9, "min_steps": 1, "max_steps": 3},
        },
    ],
)  # fmt: skip
def test_a_run_that_was_stopped_ends_as_one_that_was_not(settings: dict[str, Any], tmp_path: Path) -> None:
    tiny = save_tiny_model(tmp_path / "tiny")
    algorithm = {**settings, "offline": {"path": offline_file(tmp_path), "share": 0.25, "final_share": 0.25}}
    check_restart("optimistic_actor_critic", optimistic_config(tiny, algorithm=algorithm), tmp_path)


def test_offline_rows_are_checked(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_path("embedded:smollm2-135m-instruct"))
    limits = dict(max_prompt_tokens=64, max_completion_tokens=8, bounds=(0.0, 1.0))
    samples = load_offline_samples(offline_file(tmp_path), tokenizer, **limits)
    assert [sample.reward for sample in samples] == [1.0, 0.0, 0.0] * 4
    assert tokenizer.decode(samples[3].completion_ids) == "5<|im_end|>"
    message = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
    for row, said in [
        (message | {"reward": 2.0}, r"field 'reward': is 2, and algorithm\.actions\.bounds are \[0, 1\]"),
        (message | {"reward": "x"}, "must be a number: what the completion earned"),
        ({"text": "a b", "reward": 1.0}, "has a prompt and a completion, as fields of their own"),
    ]:
        file = tmp_path / "bad.jsonl"
        file.write_text(json.dumps(row) + "\n")
        with pytest.raises(DataError, match=said):
            load_offline_samples(str(file), tokenizer, **limits)


@pytest.mark.parametrize("coverage", ["error", "warn", "off"])
def test_a_critic_without_optimism_asks_for_coverage(
    coverage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = save_tiny_model(tmp_path / "tiny")
    offline = {"path": offline_file(tmp_path), "coverage": coverage}
    config = optimistic_config(tiny, algorithm={"preset": "noah", "offline": offline, "actions": {"chunk_tokens": 3}})
    policy, reference = load_policy(config.model), load_policy(config.model)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    if coverage == "error":
        with pytest.raises(ConfigError, match="use preset nora_hybrid, which does not rest on coverage"):
            make_critic(config, policy, reference, Accelerator(cpu=True), tokenizer)
        return
    critic = make_critic(config, policy, reference, Accelerator(cpu=True), tokenizer)
    assert ("relative condition number" in caplog.text) == (coverage == "warn")
    assert critic.optimism.kind == "none" and len(critic.memory.buffer.offline) == 12
    # actions like those that were counted: p of them, by the trace of the identity, less the ridge's part
    everything = critic.transitions(critic.memory.offline)
    assert 1 < critic.novelty.coverage(everything) < config.algorithm.switch.features + 1

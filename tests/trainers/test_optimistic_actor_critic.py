"""The optimistic actor-critic: what its critic learns and remembers, when it is exchanged, and who never sees whom."""

from pathlib import Path

import pytest
import torch

from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.models.frozen_state_critic import FrozenStateCritic
from rlhf.models.loading import load_policy
from rlhf.models.packing import TrainingSequence
from rlhf.training.checkpoint import CheckpointError
from tests.processes import run_on_two_ranks
from tests.tiny_runs import make_samples, save_tiny_model
from tests.trainers.restarts import check_restart
from tests.trainers.tiny_critics import completion_of, make_with_critic, next_step, optimistic_config, weights_of

SAMPLES = make_samples()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def test_members_begin_apart_by_their_priors_and_together_without() -> None:
    states = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))

    def critic(prior_scale: float, seed: int = 0) -> FrozenStateCritic:
        return FrozenStateCritic(16, members=6, bounds=(-1.0, 2.0), prior_scale=prior_scale, seed=seed)

    spreads = [float(critic(scale)(states).detach().std(-1).mean()) for scale in (0.3, 0.0)]
    assert spreads[0] > 5 * spreads[1]
    values = critic(0.3)(states).detach()
    assert torch.equal(values, critic(0.3)(states)) and not torch.equal(values, critic(0.3, seed=1)(states))
    assert float(values.min()) >= -1 and float(values.max()) <= 2
    low = FrozenStateCritic(16, members=6, bounds=(-1.0, 2.0), prior_scale=0.0, seed=0, initial_share=0.02)
    assert float((low(states).detach() + 0.94).abs().max()) < 0.05
    assert not any("prior" in name for name, _ in critic(0.3).named_parameters()), "priors are never trained"
    assert any("prior" in name for name in critic(0.3).state_dict()), "and are saved"


def test_states_are_those_of_the_reference_behind_every_action(model: str, tmp_path: Path) -> None:
    """Also the one behind the last token, which training never forwards."""
    learner, _ = make_with_critic(optimistic_config(model), tmp_path)
    sequences = [TrainingSequence((5, 6, 7), (10, 11, 12, 13, 14)), TrainingSequence((8, 9), (15, 16))]
    samples = [completion_of(sequence) for sequence in sequences]
    read = learner.critic.read(samples)
    found = read.state_SD
    assert read.view.position_S.tolist() == [0, 3, 5, 0, 2]
    expected = []
    padded = load_policy(learner.config.model.model_copy(update={"attention": "padded"}))
    for sequence, positions in zip(sequences, ([0, 3, 5], [0, 2]), strict=True):
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.completion_ids]])
        output = padded.causal_lm.get_decoder()(input_ids=ids, attention_mask=torch.ones_like(ids))
        rows = [len(sequence.prompt_ids) - 1 + position for position in positions]
        expected.append(output.last_hidden_state[0, rows])
    # kept in half precision
    assert torch.allclose(found, torch.cat(expected).detach(), atol=2e-3)


def test_policy_and_learning_critic_never_see_each_other(model: str, tmp_path: Path) -> None:
    rarely = {"switch": {"features": 8, "nats": 1e9, "min_steps": 1, "max_steps": 3}}
    learner, algorithm = make_with_critic(optimistic_config(model, algorithm=rarely), tmp_path)
    critic = learner.critic
    samples = SAMPLES
    for step in range(3):
        learner.update(algorithm.prepare(samples, learner), algorithm, step + 1)
        samples = next_step(samples)
    assert critic.epoch == 1
    frozen, online, policy = weights_of(critic.frozen), weights_of(critic.online), weights_of(learner.policy)
    batch = algorithm.prepare(samples, learner)
    assert not torch.equal(weights_of(critic.online), online), "the critic learns"
    assert torch.equal(weights_of(learner.policy), policy), "without moving the policy"
    assert torch.equal(weights_of(critic.frozen), frozen), "and nobody is guided by it before an exchange"
    online = weights_of(critic.online)
    learner.update(batch, algorithm, 4)
    assert not torch.equal(weights_of(learner.policy), policy)
    assert torch.equal(weights_of(critic.online), online)


def test_the_policy_waits_for_its_first_critic_and_gets_it(model: str, tmp_path: Path) -> None:
    settings = {"switch": {"features": 8, "min_steps": 2}}
    learner, algorithm = make_with_critic(optimistic_config(model, algorithm=settings), tmp_path)
    before = weights_of(learner.policy)
    learner.update(algorithm.prepare(SAMPLES, learner), algorithm, 1)
    assert torch.equal(weights_of(learner.policy), before) and learner.critic.epoch == 0
    learner.update(algorithm.prepare(next_step(SAMPLES), learner), algorithm, 2)
    assert not torch.equal(weights_of(learner.policy), before) and learner.critic.epoch == 1
    assert torch.equal(weights_of(learner.critic.frozen), weights_of(learner.critic.online))


@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("truncation", ["end", "bootstrap"])
def test_advantages_are_the_frozen_critic_s(truncation: str, decay: float, model: str, tmp_path: Path) -> None:
    """The same for all tokens of an action; a finished completion is worth nothing more, one that was cut off is over
    too, or goes on."""
    settings = {"actions": {"chunk_tokens": 3, "truncation": truncation}, "actor": {"trace_decay": decay}}
    learner, algorithm = make_with_critic(optimistic_config(model, algorithm=settings), tmp_path)
    batch = algorithm.prepare(SAMPLES, learner)
    critic = learner.critic
    for sample in batch:
        if not sample.length:
            assert sample.advantages == ()
            continue
        ids = TrainingSequence(sample.sample.prompt.token_ids, sample.sample.completion_ids)
        values = critic.guidance(critic.read([completion_of(ids)])).value_S.tolist()
        last = values[-1] if sample.sample.truncated and truncation == "bootstrap" else 0.0
        gains = [after - here for here, after in zip(values, [*values[1:-1], last], strict=False)]
        gains[-1] += sample.sample.reward
        for place in reversed(range(len(gains) - 1)):
            gains[place] += decay * gains[place + 1]
        expected = [gains[position // 3] for position in range(sample.length)]
        assert sample.advantages == pytest.approx(expected, abs=1e-5)


def test_lambda_returns_are_for_values_of_states() -> None:
    message = r"actor.trace_decay = 0.5, ensemble.target = soft: .*leave it out, or set ensemble.target to expectile"
    with pytest.raises(ValueError, match=message):
        OptimisticConfig(preset="nora_token", actor={"trace_decay": 0.5})
    assert OptimisticConfig().actor.trace_decay == 1


def test_what_is_new_falls_and_forces_no_exchange_too_early(model: str, tmp_path: Path) -> None:
    settings = {"switch": {"features": 8, "nats": 1e9, "min_steps": 1, "max_steps": 3}}
    learner, algorithm = make_with_critic(optimistic_config(model, algorithm=settings), tmp_path)
    exchanged, nats = [], []
    samples = SAMPLES
    for step in range(1, 8):
        metrics = learner.update(algorithm.prepare(samples, learner), algorithm, step)
        exchanged.append(metrics["switch/exchanged"])
        nats.append(metrics["switch/statistic"])
        samples = next_step(samples)
    assert exchanged == [0, 0, 1, 0, 0, 1, 0], "forced every third step"
    # the same states again and again: ever less to learn from them
    assert nats[2] > nats[5] and nats[3] < nats[0]


def test_settings_that_cannot_be() -> None:
    for settings, message in [
        ({"actions": {"bounds": [1.0, 1.0]}}, r"bounds = \[1.0, 1.0\] is no range"),
        ({"switch": {"min_steps": 9, "max_steps": 3}}, "min_steps = 9 is above max_steps = 3"),
        ({"kl": {"coefficient": 0.1}}, "the pull to the reference is 1 / actor.kappa"),
    ]:
        with pytest.raises(ValueError, match=message):
            optimistic_config("x", algorithm=settings)
    plain = optimistic_config("x", algorithm={"preset": "non_optimistic", "ensemble": {}}).algorithm
    assert (plain.optimism.kind, plain.ensemble.prior_scale, plain.ensemble.initial_share) == ("none", 0.0, 0.02)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(model: str, tmp_path: Path) -> None:
    check_restart("optimistic_actor_critic", optimistic_config(model), tmp_path)


@pytest.mark.slow
def test_a_stopped_run_of_two_ranks_has_the_episodes_of_both(model: str, tmp_path: Path) -> None:
    check_restart("optimistic_actor_critic", optimistic_config(model), tmp_path, launch=run_on_two_ranks)


def test_episodes_of_other_ranks_are_refused(model: str, tmp_path: Path) -> None:
    critic = make_with_critic(optimistic_config(model), tmp_path)[0].critic
    state = critic.optimizer_state()
    with pytest.raises(CheckpointError, match="episodes of 2 ranks, now there are 1: resume with 2 ranks"):
        critic.load_optimizer_state(state | {"memory": {"ranks": state["memory"]["ranks"] * 2}})

"""A policy that is never trained: it is drawn from what `logit_match` would fit, and only the critic learns."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.algorithms.mirror_descent import mirror_target, with_rest
from rlhf.config.loading import parse_config, to_dict, to_yaml
from rlhf.config.optimistic_actor_critic import OptimisticActorCriticConfig
from rlhf.config.rollouts import SamplingConfig
from rlhf.config.sharding import sharding_problems
from rlhf.data.types import Prompt, Sample
from rlhf.rollouts.requests import make_requests
from rlhf.trainers.logit_matching import follow_critic
from rlhf.trainers.run import run
from rlhf.training.checkpoint import list_checkpoints
from rlhf.training.critics.guidance import CriticGuidance, read_guided
from rlhf.training.guards import TrainingStopped
from tests.rollouts.conftest import word_tokenizer
from tests.tiny_runs import save_tiny_model
from tests.trainers.restarts import check_restart
from tests.trainers.tiny_critics import loop_config, optimistic_config, weights_of
from tests.trainers.tiny_guided import PLAIN, make_guided
from tests.trainers.tiny_language import LONGEST, VOCABULARY, save_tiny_language

PROMPTS = [Prompt(f"p:{n}", (3 + n, 5, 9 + 2 * n), "text") for n in range(6)]
FREE = SamplingConfig(samples_per_prompt=4, max_tokens=LONGEST, stop_token_ids=[])


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_language(tmp_path_factory.mktemp("language") / "tiny")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def guided_config(path: str, /, make: Any = optimistic_config, **changes: Any) -> OptimisticActorCriticConfig:
    """Five candidates of 64; `changes` of `algorithm`, or whole sections."""
    sections = {name: changes.pop(name) for name in ("batch", "sampling", "evaluation") if name in changes}
    preset = "nora_token" if make is optimistic_config else "loop_token"
    algorithm = {
        "preset": preset, "actor": {"kind": "implicit", **changes.pop("actor", {})},
        "ensemble": {"members": 4, "updates": 4, "episodes": 8, "candidates": 5, **changes.pop("ensemble", {})},
        "switch": {"features": 8, "nats": 1e-3, "min_steps": 1, **changes.pop("switch", {})}, **changes,
    }  # fmt: skip
    given = {"batch": {"steps": 8, "prompts_per_step": 6, "tokens_per_micro_batch": 64}} | sections
    given["sampling"] = {"samples_per_prompt": 4, "max_tokens": LONGEST, **sections.get("sampling", {})}
    return make(
        path, algorithm=algorithm, guards={"ratio_tolerance": 0.05, "max_ungradable_share": 1.0}, **PLAIN, **given
    )


def draw(engine: Any, step: int, prompts: list[Prompt] = PROMPTS, sampling: SamplingConfig = FREE) -> list[Sample]:
    """Graded: the share of even tokens."""
    samples = engine.generate(make_requests(prompts, sampling.samples_per_prompt, 0, step), sampling)
    return [replace(s, reward=sum(i % 2 == 0 for i in s.completion_ids) / len(s.completion_ids)) for s in samples]


def spoil(network: torch.nn.Module) -> None:
    """Values that differ a lot between tokens."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("make", [optimistic_config, loop_config])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_engine_draws_from_the_target(make: Any, temperature: float, language: str, tmp_path: Path) -> None:
    """By brute force over the whole vocabulary in double precision, and by the target of `logit_match`."""
    config = guided_config(language, make, sampling={"temperature": temperature}, actor={"reset": "jump"})
    learner, algorithm, engine = make_guided(config, tmp_path, word_tokenizer())
    critic = learner.critic
    spoil(critic.frozen)
    sampling = FREE.model_copy(update={"temperature": temperature})
    plain = draw(engine, 0, sampling=sampling)
    algorithm.guided_by = (1, 6.0)
    algorithm.guide(engine, learner, 1)
    samples = draw(engine, 0, sampling=sampling)
    assert [s.completion_ids for s in samples] != [s.completion_ids for s in plain]
    assert {s.policy_version for s in samples} == {1}
    reference = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32).eval()
    largest = 0.0
    for sample in samples[::5]:
        ids = torch.tensor([sample.prompt.token_ids + sample.completion_ids])
        rows = slice(len(sample.prompt.token_ids) - 1, -1)
        with torch.no_grad():
            output = reference(ids, output_hidden_states=True)
        base_TV = (output.logits[0, rows].double() / temperature).softmax(-1)
        logp_Tm, id_Tm = base_TV.log().topk(5, dim=-1)
        q_Tm = critic.candidate_values(output.hidden_states[-1][0, rows], id_Tm, logp_Tm.float())
        for place, token in enumerate(sample.completion_ids):
            weight_V, share = base_TV[place].clone(), base_TV[place, id_Tm[place]]
            mean = float((share * q_Tm[place]).sum() / share.sum())
            for candidate, q in zip(id_Tm[place].tolist(), q_Tm[place].tolist(), strict=True):
                weight_V[candidate] *= torch.tensor(6.0 * (q - mean), dtype=torch.float64).exp()
            expected = float(weight_V[token] / weight_V.sum())
            assert float(torch.tensor(sample.logps[place]).exp()) == pytest.approx(expected, abs=1e-5)
            largest = max(largest, abs(expected - float(base_TV[place, token])))
    assert largest > 0.1, "the guidance changes a lot"


def test_guidance_is_exact_over_the_vocabulary(language: str, tmp_path: Path) -> None:
    """Nothing but the logits' own rounding between the guided distribution and pi_ref exp(kappa A)."""
    learner, _, _ = make_guided(guided_config(language), tmp_path, word_tokenizer())
    spoil(learner.critic.frozen)
    generator = torch.Generator().manual_seed(0)
    hidden, logits = torch.randn(9, 32, generator=generator), 2 * torch.randn(9, VOCABULARY, generator=generator)
    guided = CriticGuidance(learner.critic, 6.0, 5, 1.0)(hidden, logits).double().softmax(-1)
    base = logits.double().softmax(-1)
    logp, ids = base.log().topk(5, dim=-1)
    q = learner.critic.candidate_values(hidden, ids, logp.float()).double()
    target = mirror_target(with_rest(logp), q, 6.0).exp()
    assert float((guided.gather(1, ids) - target[:, :-1]).abs().max()) < 1e-6
    others = torch.ones_like(base).scatter(1, ids, 0.0)
    spread = base * others / (base * others).sum(-1, keepdim=True) * target[:, -1:]
    assert float((guided * others - spread).abs().max()) < 1e-6
    assert float((guided - base).abs().max()) > 0.1


def test_it_is_what_logit_matching_would_fit(language: str, tmp_path: Path) -> None:
    """Where the token that was taken is among the likely ones: elsewhere `logit_match` has one candidate more. Kept
    states and log-probs are in half precision."""
    learner, _, engine = make_guided(guided_config(language), tmp_path, word_tokenizer())
    critic = learner.critic
    spoil(critic.frozen)
    samples = draw(engine, 0)
    matched = follow_critic(guided_config(language, actor={"kind": "logit_match"}).algorithm, 4)
    fresh = critic.read(samples)
    compared, (targets, embedding) = 0, (matched._targets(fresh, critic), learner.policy.causal_lm)
    guidance = CriticGuidance(critic, matched.mirror.kappa, 5, 1.0)
    state_of = iter(fresh.state_SD.split((fresh.view.actions_B + 1).tolist()))
    for target in targets:
        states_TD = next(state_of)[:-1]
        with torch.no_grad():
            guided_TV = guidance(states_TD, embedding.get_output_embeddings()(states_TD)).log_softmax(-1)
        is_likely_T = target.target_logp_TC[:, 1:-1].isneginf().any(-1)
        found = guided_TV.gather(1, target.candidate_id_Tm)[is_likely_T]
        expected = target.target_logp_TC[:, :-1][is_likely_T]
        present = ~expected.isneginf()
        compared += int(present.sum())
        assert torch.allclose(found.exp()[present], expected.exp()[present], atol=5e-3)
    assert compared > 100


def test_kappa_zero_and_no_exchange_draw_what_the_reference_draws(language: str, tmp_path: Path) -> None:
    learner, algorithm, engine = make_guided(guided_config(language), tmp_path, word_tokenizer())
    plain = draw(engine, 0)
    algorithm.guide(engine, learner, 0)
    assert engine.guidance is None, "before the first exchange"
    engine.guide(CriticGuidance(learner.critic, 0.0, 5, 1.0), 0)
    assert draw(engine, 0) == plain


def test_an_engine_that_draws_from_something_else_stops_the_run(language: str, tmp_path: Path) -> None:
    learner, algorithm, engine = make_guided(guided_config(language), tmp_path, word_tokenizer())
    spoil(learner.critic.frozen)
    algorithm.guided_by = (1, 6.0)
    algorithm.guide(engine, learner, 1)
    samples = draw(engine, 0)
    found = read_guided(learner.critic, learner.critic.read(samples), 6.0)
    assert float((found.logp_A - found.engine_logp_A).abs().max()) < 0.02, "half precision"
    assert float(found.kl_A.mean()) > 0.05
    drawn = algorithm._drawn(learner.critic.read(samples), learner)
    assert drawn["policy/engine_ratio_mean"] == pytest.approx(1, abs=2e-3) and drawn["policy/engine_logp_gap"] < 2e-3
    engine.guide(None, 1)
    with pytest.raises(TrainingStopped, match=r"off 1 by 0\.[1-9].*engine samples from another policy"):
        algorithm._drawn(learner.critic.read(draw(engine, 0)), learner)


def test_only_the_critic_learns_and_exchanges_are_new_policies(language: str, tmp_path: Path) -> None:
    config = guided_config(language, actor={"reset": "target", "saturation": 4}, switch={"nats": 1e9, "max_steps": 2})
    learner, algorithm, engine = make_guided(config, tmp_path, word_tokenizer())
    before, kappas, moved = weights_of(learner.policy), [], []
    for step in range(1, 6):
        metrics = learner.update(algorithm.prepare(draw(engine, step), learner), algorithm, step)
        kappas.append(metrics["actor/kappa"])
        moved.append(algorithm.should_sync())
        if algorithm.should_sync():
            algorithm.guide(engine, learner, step)
        assert metrics["tokens/trained"] == 0 and "actor/learns" not in metrics
        assert abs(metrics["policy/engine_ratio_mean"] - 1) < 0.01
    # exchanges at steps 2 and 4, and each time from the reference on again
    assert kappas == [0.0, 5.0, 10.0, 5.0, 10.0] and moved == [False, True, True, True, True]
    assert torch.equal(weights_of(learner.policy), before) and engine.version == 5
    assert learner.state.optimizer()["param_groups"][0]["params"] == []
    jump = guided_config(language, switch={"nats": 1e9, "max_steps": 2})
    learner, algorithm, engine = make_guided(jump, tmp_path, word_tokenizer())
    for step in range(1, 6):
        metrics = learner.update(algorithm.prepare(draw(engine, step), learner), algorithm, step)
        if algorithm.should_sync():
            algorithm.guide(engine, learner, step)
    assert metrics["actor/syncs"] == learner.critic.epoch == 2 and engine.version == 4 and metrics["actor/kappa"] == 20
    assert algorithm.state_dict()["guided_by"] == [2, 20.0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm.actions.view": "chunk", "algorithm.ensemble.target": "expectile",
          "algorithm.ensemble.path_spans": "[]"}, "set actions.view to token"),
        ({"algorithm.ensemble.target": "policy", "algorithm.ensemble.path_spans": "[]"}, "do not know the guidance"),
        ({"algorithm.ensemble.target": "expectile", "algorithm.ensemble.path_spans": "[]"}, "no values of tokens to"),
        ({"algorithm.actor.reset": "hard"}, "set actor.reset to target or jump"),
        ({"algorithm.actor.reset": "none"}, "set actor.reset to jump or target"),
        ({"algorithm.actor.reset": "target", "algorithm.sync.when": "switch"}, "kappa would never grow"),
        ({"algorithm.actor.replay_episodes": "4"}, "set it to 0"),
        ({"algorithm.whiten": "true"}, "whiten changes the policy's loss"),
        ({"algorithm.mismatch.level": "token"}, "mismatch.level changes the policy's loss"),
        ({"engine.type": "vllm"}, "set engine.type to transformers"),
        ({"engine.type": "server", "engine.urls": "[http://127.0.0.1:8001]"}, "set engine.type to transformers"),
        ({"model.lora": "{}"}, "leave model.lora out"),
        ({"model.gradient_checkpointing": "true"}, "set model.gradient_checkpointing to false"),
        ({"optimizer.lr": "1e-5"}, "the critic's learning rate is algorithm.ensemble.lr"),
        ({"schedule.warmup_steps": "5"}, "leave the section out"),
        ({"batch.minibatches": "2"}, "set batch.minibatches to 1"),
        ({"batch.epochs": "2"}, "set batch.epochs to 1"),
        ({"batch.staleness": "1"}, "set batch.staleness to 0"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_with_the_remedy(changes: dict[str, str], said: str) -> None:
    given = {
        "model.path": "some/model", "data.type": "arithmetic", "engine.type": "transformers",
        "algorithm.preset": "nora_token", "algorithm.actor.kind": "implicit",
    }  # fmt: skip

    def parse(values: dict[str, str]) -> OptimisticActorCriticConfig:
        return parse_config(OptimisticActorCriticConfig, [w for k, v in values.items() for w in (f"--{k}", v)])

    config = parse(given)
    assert OptimisticActorCriticConfig.model_validate(to_dict(config)) == config, "it round-trips"
    assert not config.algorithm.trains_policy and not config.algorithm.needs_reference_model
    (problem,) = sharding_problems(config, "fsdp2")
    assert "ddp.yaml" in problem and sharding_problems(config, "ddp") == []
    with pytest.raises(ValueError) as caught:
        parse(given | changes)
    assert len(caught.value.problems) == 1 and said in caught.value.problems[0], caught.value.problems


RUNNING = {"candidates": 8, "lr": 0.01}


@pytest.mark.slow
def test_a_run_leaves_the_weights_and_says_so(model: str, tmp_path: Path) -> None:
    config = guided_config(
        model, ensemble=RUNNING, batch={"steps": 3, "prompts_per_step": 4, "tokens_per_micro_batch": 128},
        switch={"nats": 1e9, "max_steps": 2}, evaluation={"prompts": 20, "every": 1, "max_tokens": 8},
    )  # fmt: skip
    config = config.model_copy(update={"run": config.run.model_copy(update={"folder": str(tmp_path)})})
    folder = run(config, make_algorithm=follow_critic)
    start, end = (AutoModelForCausalLM.from_pretrained(path) for path in (model, folder / "model"))
    assert torch.equal(weights_of(start), weights_of(end))
    assert "no weights are trained" in (folder / "model" / "README.md").read_text()
    AutoTokenizer.from_pretrained(folder / "model")
    names = load_file(list_checkpoints(folder / "checkpoints")[-1] / "weights.safetensors")
    assert names and all(name.startswith("critic.") for name in names), "and not the weights a second time"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["actor/kappa"] for line in lines] == [0.0, 20.0, 20.0]
    assert [line["actor/syncs"] for line in lines] == [0.0, 1.0, 1.0]
    assert lines[1]["policy/kl_reference"] == pytest.approx(0, abs=1e-6) and lines[2]["policy/kl_reference"] > 1e-3
    evaluations = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    tokens = [line["mean_tokens"] for line in evaluations]
    assert tokens[0] == tokens[1] and tokens[2] == tokens[3], "the same policy until the exchange, and after it"
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(model: str, tmp_path: Path) -> None:
    """Stopped between an exchange and the next one: what guides comes out of the checkpoint, at its kappa."""
    config = guided_config(
        model, ensemble=RUNNING, actor={"reset": "target", "saturation": 4}, switch={"nats": 1e9, "max_steps": 2}
    )
    assert "kind: implicit" in to_yaml(config)
    check_restart(
        "optimistic_actor_critic", config, tmp_path, moves=("policy/kl_reference", 1e-3), minibatches=1
    )  # fmt: skip


@pytest.mark.slow
def test_guidance_alone_raises_the_reward(language: str, tmp_path: Path) -> None:
    """Two tokens, of which even ones pay. No weight moves; the reference earns about one half of what can be had."""
    gains, sampling = [], FREE.model_copy(update={"max_tokens": 2})
    for seed in (0, 1, 2):
        config = guided_config(
            language, switch={"nats": 2.0, "min_steps": 2},
            ensemble={"updates": 16, "episodes": 24, "candidates": 16, "lr": 0.01, "members": 6, "path_spans": []},
        )  # fmt: skip
        config = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
        learner, algorithm, engine = make_guided(config, tmp_path, word_tokenizer())
        before, rewards = weights_of(learner.policy), []
        for step in range(1, 15):
            samples = draw(engine, 100 * seed + step, sampling=sampling)
            rewards.append(sum(sample.reward for sample in samples) / len(samples))
            learner.update(algorithm.prepare(samples, learner), algorithm, step)
            if algorithm.should_sync():
                algorithm.guide(engine, learner, step)
        assert torch.equal(weights_of(learner.policy), before)
        gains.append(sum(rewards[-4:]) / 4 - sum(rewards[:2]) / 2)
    assert min(gains) > 0.08 and sum(gains) / 3 > 0.12, gains

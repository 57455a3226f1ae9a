"""Contradictions between sections are refused, each with its remedy; what the remedy says makes it load."""

import pytest

from rlhf.config.capo import CAPOConfig
from rlhf.config.grpo import GRPOConfig
from rlhf.config.loading import ConfigError, load_config, parse_config
from rlhf.config.loop import LOOPConfig
from rlhf.config.optimistic_actor_critic import OptimisticActorCriticConfig
from rlhf.config.ppo import PPOConfig
from rlhf.config.rules import check_world_size, remarks
from rlhf.config.vpo import VPOConfig

DATASET = ["--data.type", "dataset", "--data.path", "a.jsonl"]

# flags that contradict each other, what is said, and the flags of the remedy
CASES = [
    (["--batch.minibatches", "5"], "set batch.minibatches to 4,", ["--batch.minibatches", "4"]),
    (["--algorithm.kl.coefficient", "0.1", "--algorithm.kl.estimator", "k1"], "set algorithm.kl.estimator to k3 or k2",
     ["--algorithm.kl.where", "reward"]),
    (["--data.level", "1"], "set evaluation.prompts to 25 or less", ["--evaluation.prompts", "25"]),
    (["--evaluation.data.type", "arithmetic", "--evaluation.data.level", "1"], "or evaluation.data.level higher",
     ["--evaluation.data.level", "2"]),
    (["--batch.epochs", "2", "--algorithm.preset", "rloo"], "set batch.epochs to 1", ["--batch.epochs", "1"]),
    (["--sampling.temperature", "0"], "set it above 0", ["--sampling.temperature", "1"]),
    (["--sampling.top_p", "0.9"], "set sampling.top_p to 1", ["--sampling.top_p", "1"]),
    (["--sampling.top_k", "40"], "set sampling.top_k to 0", ["--sampling.top_k", "0"]),
    (["--sampling.samples_per_prompt", "1"], "algorithm.advantage to batch_mean",
     ["--algorithm.advantage", "batch_mean"]),
    (["--algorithm.preset", "reinforce", "--algorithm.dynamic_sampling.max_refills", "2"], "has no groups",
     ["--algorithm.dynamic_sampling.max_refills", "0"]),
    ([*DATASET, "--evaluation.prompts", "0"], "set data.answer_field to their field", ["--data.answer_field", "a"]),
    ([*DATASET, "--data.answer_field", "a"], "or set evaluation.prompts to 0", ["--evaluation.prompts", "0"]),
    (["--evaluation.data.type", "dataset", "--evaluation.data.path", "b.jsonl"], "set evaluation.data.answer_field",
     ["--evaluation.data.answer_field", "a"]),
    (["--rewards.functions", "[{type: soft_overlong, max_tokens: 900, buffer_tokens: 9}]"],
     "set rewards.functions.0.max_tokens to 256 or less", ["--rewards.functions.0.max_tokens", "256"]),
    (["--rewards.functions", "[{type: soft_overlong, max_tokens: 90, buffer_tokens: 91}]"], "set it to 90 or less",
     ["--rewards.functions.0.buffer_tokens", "90"]),
    (["--engine.max_model_len", "1000", "--evaluation.max_tokens", "9"], "raise it to 1280",
     ["--engine.max_model_len", "1280"]),
    (["--checkpoint.keep_best", "evaluation/gsm8k/accuracy"], "set it to evaluation/held_out/accuracy",
     ["--evaluation.benchmarks", "gsm8k"]),
    (["--engine.max_model_len", "1280", "--evaluation.max_tokens", "512"], "raise it to 1536",
     ["--engine.max_model_len", "1536"]),
    (["--algorithm.loss", "reinforce", "--algorithm.importance", "sequence"], "use importance: token",
     ["--algorithm.importance", "token"]),
    (["--algorithm.preset", "cispo", "--algorithm.dual_clip", "3"], "remove it", ["--algorithm.dual_clip", "null"]),
    (["--batch.staleness", "1"], "set algorithm.mismatch.level to token or sequence",
     ["--algorithm.mismatch.level", "sequence"]),
    (["--batch.staleness", "2"], "or batch.staleness to 0", ["--batch.staleness", "0"]),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "said", "remedy"), CASES, ids=[case[1] for case in CASES])
def test_a_contradiction_is_refused_and_its_remedy_works(parse, problems, flags, said, remedy):
    found = problems(*flags)
    assert len(found) == 1 and said in found[0], found
    parse(*flags, *remedy)


def test_contradictions_come_all_at_once(problems):
    assert len(problems("--sampling.top_p", "0.5", "--sampling.top_k", "3", "--batch.minibatches", "5")) == 3


@pytest.mark.parametrize(
    ("world_size", "minibatches", "said"),
    [
        (1, 1, None),
        (8, 4, None),
        (3, 1, "set batch.prompts_per_step to 30 or 33"),
        (8, 8, "set batch.prompts_per_step to 64"),
        (64, 1, "set batch.prompts_per_step to 64"),
    ],
)
def test_prompts_divide_over_ranks_and_minibatches(parse, world_size, minibatches, said):
    config = parse("--batch.prompts_per_step", "32", "--batch.minibatches", str(minibatches))
    if said is None:
        check_world_size(config, world_size)
    else:
        with pytest.raises(ConfigError, match=said):
            check_world_size(config, world_size)


def test_the_launcher_s_world_size_is_checked(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SystemExit) as caught:
        load_config(GRPOConfig, ["--model.path", "m", "--data.type", "arithmetic"])
    assert caught.value.code == 2 and "does not divide over 3 ranks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch.tokens_per_micro_batch", "1279"], "the longest prompt plus completion (1280 tokens)"),
        (["--model.lora.dropout", "0.1"], "guards.ratio_tolerance"),
        (["--algorithm.preset", "rloo", "--batch.minibatches", "2"], "off-policy without correction"),
        (["--checkpoint.keep_best", "evaluation/held_out/accuracy"], "set checkpoint.every and evaluation.every"),
        (["--batch.staleness", "2", "--algorithm.mismatch.level", "token"], "samples older and nothing faster"),
    ],
)
def test_remarks(parse, flags, said):
    (remark,) = remarks(parse(*flags))
    assert said in remark


OTHERS = [
    (CAPOConfig, {}, "CAPO judges the step"),
    (VPOConfig, {}, "no importance ratio"),
    (OptimisticActorCriticConfig, {}, "jumps where the critic is exchanged"),
    (LOOPConfig, {}, "planned anew at exchanges"),
    (PPOConfig, {"--algorithm.mismatch.level": "token"}, None),
]


@pytest.mark.parametrize(("schema", "flags", "said"), OTHERS, ids=[schema.__name__ for schema, *_ in OTHERS])
def test_recipes_that_cannot_learn_from_older_samples_say_why(schema, flags, said):
    given = {"--model.path": "m", "--data.type": "arithmetic", "--batch.staleness": "1", **flags}
    arguments = [word for pair in given.items() for word in pair]
    if said is None:
        assert parse_config(schema, arguments).batch.staleness == 1
        return
    with pytest.raises(ConfigError) as caught:
        parse_config(schema, arguments)
    (problem,) = caught.value.problems
    assert said in problem and problem.endswith("set batch.staleness to 0")


def test_nothing_is_remarked_on_the_defaults(parse):
    assert remarks(parse()) == []

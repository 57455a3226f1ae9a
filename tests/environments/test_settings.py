"""Sessions that cannot be are refused with the remedy, and whole dialogues are planned for."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from rlhf.config.capo import CAPOConfig
from rlhf.config.dry_run import batch_table
from rlhf.config.grpo import GRPOConfig
from rlhf.config.lengths import most_completion_tokens, most_own_tokens
from rlhf.config.memory_plan import memory_plan, micro_batch_tokens
from rlhf.config.mining import MiningConfig
from rlhf.config.model_shapes import find_shape
from rlhf.config.optimistic_actor_critic import OptimisticActorCriticConfig
from rlhf.config.ppo import PPOConfig
from rlhf.config.rules import longest_sequence
from rlhf.config.vpo import VPOConfig
from rlhf.data.types import Prompt
from tests.tiny_runs import tiny_config

GAME = {"type": "number_guessing"}
PAID = {"functions": [{"type": "environment"}]}
MINE = {"type": "callable", "path": "mine.py:make"}


def config_of(schema=None, **changes: Any):
    kind = {} if schema is None else {"schema": schema}
    return tiny_config("x", **kind, **({"data": GAME, "environment": GAME, "rewards": PAID} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": None}, "number_guessing begins sessions, and nobody answers: set environment.type"),
        ({"environment": None, "data": {"type": "arithmetic"}}, "rewards.functions.0 is what an environment pays"),
        ({"data": {"type": "arithmetic"}}, "that is arithmetic: set data.type to number_guessing"),
        ({"evaluation": {"prompts": 4, "data": {"type": "arithmetic"}}}, "set evaluation.data.type to number_guessing"),
        ({"rewards": {}}, r"rewards.functions.0 \(correctness\) needs a gold answer, and sessions"),
        ({"rewards": {"functions": [{"type": "judge", "path": "a.py:b"}]}}, "asked about one answer to a prompt"),
        ({"rewards": {"functions": [{"type": "reward_model", "path": "a"}]}}, "asked about one answer to a prompt"),
        ({"algorithm": {"preset": "dapo"}}, "set algorithm.mask_truncated to false"),
        ({"engine": {"type": "vllm", "max_model_len": 64}},
         r"max_prompt_tokens \+ 8 turns x \(max_tokens \+ max_reply_tokens\) = 1344"),
        ({"rewards": {"functions": [{"type": "soft_overlong", "max_tokens": 65, "buffer_tokens": 4}]}},
         "sampling.max_tokens = 8 x 8 turns, .* to 64 or less"),
        ({"environment": GAME | {"turns": 0}}, "greater than or equal to 1|>= 1"),
        ({"checkpoint": {"keep_best": "evaluation/x/y"}, "evaluation": {"prompts": 4}},
         "set it to evaluation/held_out/reward_per_turn"),
    ],
)  # fmt: skip
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**changes)


def test_refused_by_recipes_that_learn_from_single_answers() -> None:
    with pytest.raises(ValueError, match=r"environment\.type = callable: preferences are of single answers"):
        config_of(VPOConfig, environment=MINE, data={"type": "arithmetic"})
    with pytest.raises(ValueError, match="Input tag 'number_guessing'"):
        config_of(VPOConfig)
    with pytest.raises(ValueError, match=r"data\.type = number_guessing: preferences are of single answers"):
        MiningConfig.model_validate({"model": {"path": "x"}, "data": GAME})
    with pytest.raises(ValueError, match=r"can earn 8: set algorithm.critic.bounds to \[0, 8\]"):
        config_of(PPOConfig)
    with pytest.raises(ValueError, match=r"can earn 8: set algorithm.actions.bounds to \[0, 8\]"):
        config_of(OptimisticActorCriticConfig, algorithm={"actions": {"view": "turn"}})


def test_the_page_s_example_is_one() -> None:
    """Its settings load, and its environment is played as it says."""
    page = (Path(__file__).parents[2] / "docs/environments.md").read_text(encoding="utf-8")
    (settings,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    config = GRPOConfig.model_validate({"model": {"path": "x"}} | yaml.safe_load(settings))
    assert (config.environment.path, config.environment.turns) == ("my_env.py:Letters", 10)
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    # dataclasses look for the module of their class
    module = ModuleType("my_env")
    sys.modules["my_env"] = module
    try:
        exec(compile(code, "docs/environments.md", "exec"), module.__dict__)
    finally:
        del sys.modules["my_env"]
    letters = module.Letters()
    first = letters.answer(letters.start(Prompt("w:0", (1,), "?", {"answer": "cat"}), 0), " t")
    assert (first.text, first.reward, first.done) == ("yes", -0.01, False)
    assert letters.answer(first.state, "x").text == "no"
    last = letters.answer(first.state, "a cat")
    assert (last.reward, last.done) == (1.0, True)


def test_accepted() -> None:
    assert config_of(CAPOConfig).environment.turns == 8
    assert config_of(environment=MINE, data={"type": "dataset", "path": "a.jsonl", "as_chat": True}).environment
    assert config_of(environment=MINE, algorithm={"preset": "dapo"}).algorithm.mask_truncated
    assert config_of(PPOConfig, algorithm={"critic": {"bounds": None}}).algorithm.critic.bounds is None


def test_whole_dialogues_are_planned_for() -> None:
    """64 prompt tokens, 5 turns of 8 + 16 tokens; in evaluation 5 of 20 + 16."""
    config = config_of(
        data=GAME | {"max_prompt_tokens": 64}, environment=GAME | {"turns": 5, "max_reply_tokens": 16},
        evaluation={"prompts": 4, "max_tokens": 20},
        batch={"steps": 1, "prompts_per_step": 2, "tokens_per_micro_batch": 10_000},
    )  # fmt: skip
    assert most_own_tokens(config) == 40 and most_completion_tokens(config) == 120
    assert longest_sequence(config) == 64 + 5 * 36
    assert micro_batch_tokens(config, 1) == 2 * (64 + 4 * 120)
    first = batch_table(config, 1).splitlines()[1].split()
    assert first[-4:] == ["2", "8", "960", "1,088"]
    plan = memory_plan(config, find_shape("embedded:smollm2-135m-instruct", None))
    assert any("8 completions x 184 tokens" in item.formula for item in plan.items)

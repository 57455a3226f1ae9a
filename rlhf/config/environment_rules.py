"""Rules of sessions with an environment: which prompts, rewards and masks go with it. Each says the remedy."""

from typing import Any

from rlhf.config.data import NumberGuessingConfig
from rlhf.config.environments import NumberGuessingEnvironmentConfig
from rlhf.config.rewards import (
    CorrectnessConfig,
    EnvironmentRewardConfig,
    JudgeConfig,
    RewardModelConfig,
    environment_weight,
)


def environment_contradictions(config: Any) -> list[str]:
    """What contradicts the `environment` section, or its absence; empty if nothing does."""
    if config.environment is None:
        return _without(config)
    return [*_prompts(config), *_rewards(config), *_masks(config), *_critic(config), *_actions(config)]


def _sources(config: Any) -> dict[str, Any]:
    held_out = config.evaluation.data if config.evaluation.prompts else None
    return {"data": config.data} | ({} if held_out is None else {"evaluation.data": held_out})


def _without(config: Any) -> list[str]:
    problems = [
        f"{place}.type = number_guessing begins sessions, and nobody answers: set environment.type to number_guessing "
        "(turns: 8 is usual)"
        for place, source in _sources(config).items() if isinstance(source, NumberGuessingConfig)
    ]  # fmt: skip
    problems += [
        f"rewards.functions.{index} is what an environment pays, and there is none: add the section environment, or "
        "choose another reward"
        for index, function in enumerate(config.rewards.functions) if isinstance(function, EnvironmentRewardConfig)
    ]  # fmt: skip
    return problems


def _prompts(config: Any) -> list[str]:
    problems = []
    for place, source in _sources(config).items():
        if isinstance(config.environment, NumberGuessingEnvironmentConfig):
            if not isinstance(source, NumberGuessingConfig):
                problems.append(
                    f"environment.type = number_guessing plays sessions of {place}.type = number_guessing, and that is "
                    f"{source.type}: set {place}.type to number_guessing, or give an environment of your own "
                    "(environment.type callable)"
                )
    return problems


def _rewards(config: Any) -> list[str]:
    problems = []
    for index, function in enumerate(config.rewards.functions):
        place = f"rewards.functions.{index} ({function.type})"
        if isinstance(function, RewardModelConfig | JudgeConfig):
            problems.append(
                f"{place} is asked about one answer to a prompt, and environment makes dialogues: use environment or "
                "callable, which is given all messages"
            )
        if isinstance(function, CorrectnessConfig) and isinstance(config.data, NumberGuessingConfig):
            problems.append(
                f"{place} needs a gold answer, and sessions of number_guessing have none: set rewards.functions to "
                "[{type: environment}]"
            )
    return problems


def _masks(config: Any) -> list[str]:
    masks = getattr(config.algorithm, "mask_truncated", False)
    if not masks or not isinstance(config.environment, NumberGuessingEnvironmentConfig):
        return []
    return [
        "algorithm.mask_truncated leaves out sessions that are cut, and number_guessing never ends one by itself: "
        "every session would be left out; set algorithm.mask_truncated to false"
    ]


def _actions(config: Any) -> list[str]:
    actions = getattr(config.algorithm, "actions", None)
    if actions is None or actions.view == "turn":
        return []
    return [
        f"algorithm.actions.view = {actions.view}: what the environment says between two turns is no action of the "
        "policy; set algorithm.actions.view to turn"
    ]


def _critic(config: Any) -> list[str]:
    if not isinstance(config.environment, NumberGuessingEnvironmentConfig):
        return []
    algorithm, problems = config.algorithm, []
    bounds_of: dict[str, tuple[tuple[float, float] | None, str]] = {}
    if algorithm.type == "ppo":
        bounds_of["critic"] = (algorithm.critic.bounds, ", or to null")
    if algorithm.type == "optimistic_actor_critic":
        bounds_of["actions"] = (algorithm.actions.bounds, "")
    most = environment_weight(config.rewards) * config.environment.turns
    for name, (bounds, otherwise) in bounds_of.items():
        if bounds is not None and most > bounds[1]:
            problems.append(
                f"algorithm.{name}.bounds = {list(bounds)}, and a session of {config.environment.turns} turns can earn "
                f"{most:g}: set algorithm.{name}.bounds to [{bounds[0]:g}, {most:g}]{otherwise}"
            )
    return problems

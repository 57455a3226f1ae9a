"""How long completions and whole dialogues can get, in tokens."""

from typing import Any


def most_own_tokens(config: Any) -> int:
    """Most tokens that the policy writes behind a prompt: in one completion, or in all turns of a dialogue."""
    environment = config.environment
    return config.sampling.max_tokens if environment is None else environment.turns * config.sampling.max_tokens


def most_completion_tokens(config: Any, max_tokens: int | None = None) -> int:
    """Most tokens behind a prompt, the environment's included. `max_tokens`: of a turn, if not the sampling's."""
    max_tokens, environment = max_tokens or config.sampling.max_tokens, config.environment
    return max_tokens if environment is None else environment.turns * (max_tokens + environment.max_reply_tokens)

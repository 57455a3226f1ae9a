"""Shared by the tests of the configuration."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf.config.grpo import GRPOConfig
from rlhf.config.loading import ConfigError, parse_config

REQUIRED = ["--model.path", "some/model", "--data.type", "arithmetic"]


@pytest.fixture
def parse() -> Callable[..., GRPOConfig]:
    """Parse flags on top of the two required ones."""

    def run(*flags: str) -> GRPOConfig:
        return parse_config(GRPOConfig, [*REQUIRED, *flags])

    return run


@pytest.fixture
def problems(parse: Callable[..., GRPOConfig]) -> Callable[..., list[str]]:
    """What is wrong with flags on top of the two required ones; fails if nothing is."""

    def run(*flags: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            parse(*flags)
        return caught.value.problems

    return run


@pytest.fixture
def written(tmp_path: Any) -> Callable[[str], str]:
    """Write a YAML file and return its path."""

    def run(text: str) -> str:
        file = tmp_path / "run.yaml"
        file.write_text(text, encoding="utf-8")
        return str(file)

    return run

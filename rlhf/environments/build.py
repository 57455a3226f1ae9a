"""From the `environment` section to an environment."""

from rlhf.config.environments import CallableEnvironmentConfig, EnvironmentConfig
from rlhf.data.user_code import load_callable
from rlhf.environments.number_guessing import NumberGuessing
from rlhf.environments.protocol import Environment, EnvironmentFailure


def build_environment(config: EnvironmentConfig) -> Environment:
    """The environment that `config.type` names.

    Raises UserCodeError where a user's is not found, EnvironmentFailure where it cannot be made or is none.
    """
    if not isinstance(config, CallableEnvironmentConfig):
        return NumberGuessing()
    make = load_callable(config.path, "environment")
    try:
        environment = make()
    except Exception as error:
        raise EnvironmentFailure(
            f"environment {config.path!r}: making it raised {type(error).__name__}: {error}"
        ) from error
    missing = [name for name in ("start", "answer") if not callable(getattr(environment, name, None))]
    if missing:
        raise EnvironmentFailure(
            f"environment {config.path!r} makes a {type(environment).__name__} without {' and '.join(missing)}: it "
            "needs start(prompt, seed) and answer(state, text), see docs/environments.md"
        )
    return environment

"""Before the first request: the server has started, and computes what training needs."""

import time
from typing import Any

import torch

from rlhf.rollouts.engine import EngineError
from rlhf.rollouts.server_client import RolloutServer, ServerFault


def wait_until_started(server: RolloutServer, timeout_s: float, every_s: float) -> dict[str, Any]:
    """What the server says of itself, as soon as it answers. Raises EngineError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            server.check_health()
            return server.describe()
        except ServerFault as fault:
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{fault}. It has not started within {timeout_s:g} s (engine.start_timeout_s): start it with "
                    "launch/rollout_server.py"
                ) from fault
        time.sleep(every_s)


def check_agreement(url: str, about: dict[str, Any], dtype: torch.dtype, longest_sequence: int) -> None:
    """Raises ValueError where a server has another precision, holds shorter sequences or splits the model."""
    wanted = str(dtype).removeprefix("torch.")
    if about["dtype"] != wanted:
        raise ValueError(
            f"{url} computes in {about['dtype']} and engine.dtype says {wanted}: start it with --dtype {wanted}, or "
            f"set engine.dtype: {about['dtype']}"
        )
    if about["max_model_len"] < longest_sequence:
        raise ValueError(
            f"{url} holds {about['max_model_len']} tokens and the longest prompt plus completion is "
            f"{longest_sequence}: start it with --max-model-len {longest_sequence}"
        )
    if about["world_size"] != 1:
        raise ValueError(
            f"{url} splits the model over {about['world_size']} processes, whose parts cannot be compared with the "
            "learner's weights: start one server for each GPU instead"
        )

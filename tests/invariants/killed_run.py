"""Run a recipe that kills itself, as `kill -9` does, in the middle of a phase.

Arguments: a config file, the phase (generate, update or checkpoint), and at which step.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from rlhf.config.grpo import GRPOConfig
from rlhf.config.loading import load_config
from rlhf.rollouts import transformers_engine
from rlhf.training import checkpoint
from rlhf.training.learner import Learner


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_while_generating(step: int) -> None:
    """In the step's decode loop, with some of its tokens drawn."""
    decode, calls = transformers_engine.decode, 0

    def counted(model: torch.nn.Module, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            forwards = 0

            def forward(*_: Any) -> None:
                nonlocal forwards
                forwards += 1
                if forwards == 4:
                    die()

            model.register_forward_pre_hook(forward)
        return decode(model, *arguments)

    transformers_engine.decode = counted


def kill_while_updating(step: int) -> None:
    """After the step's first minibatch changed the weights, before its second."""
    take_step: Callable[..., None] = Learner._optimizer_step

    def counted(self: Learner, samples: Any, algorithm: Any, at: int, *rest: Any, check_ratio: bool) -> None:
        if at == step and not check_ratio:
            die()
        take_step(self, samples, algorithm, at, *rest, check_ratio=check_ratio)

    Learner._optimizer_step = counted


def kill_while_saving(step: int) -> None:
    """With the step's weights written, and its optimizer state half."""
    save, calls = torch.save, 0

    def counted(state: Any, path: Any) -> None:
        nonlocal calls
        calls += 1
        save(state, path)
        if calls == step:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    checkpoint.torch.save = counted


PHASES = {"generate": kill_while_generating, "update": kill_while_updating, "checkpoint": kill_while_saving}

if __name__ == "__main__":
    config_file, phase, step = sys.argv[1:]
    PHASES[phase](int(step))
    from rlhf.trainers.run import run

    run(load_config(GRPOConfig, ["--config", config_file]))

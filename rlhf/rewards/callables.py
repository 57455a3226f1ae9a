"""A user's reward function, called as TRL calls it: `f(prompts=, completions=, completion_ids=, **columns)`.

It may hold anything (a reward model on the GPU, a client), so it runs in this process, in a thread that is given up
after a wall-clock limit.
"""

import asyncio
import contextvars
import inspect
import math
import numbers
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf.data.types import Sample
from rlhf.data.user_code import UserCodeError, load_callable

RewardFunction = Callable[..., Any]


class RewardError(RuntimeError):
    """A reward function failed; the message names the function and the sample."""


def load_function(path: str) -> RewardFunction:
    """The function at `package.module:function` or `path/to/file.py:function`.

    Modules are looked for in the working directory too. Raises `RewardError` with the remedy if there is none.
    """
    try:
        return load_callable(path, "reward function")
    except UserCodeError as error:
        raise RewardError(str(error)) from error


def trl_arguments(samples: Sequence[Sample], function: RewardFunction | None = None) -> dict[str, list[Any]]:
    """The keyword arguments of TRL's convention, one entry a sample in each list.

    A prompt is a string, or a list of messages; its completion is then `[{"role": "assistant", "content": text}]`, or
    all messages of a dialogue.
    Columns are the union over the samples, None where a prompt lacks one. Arguments that `function` does not take are
    left out.
    """
    names = dict.fromkeys(name for sample in samples for name in sample.prompt.columns)
    arguments: dict[str, list[Any]] = {name: [s.prompt.columns.get(name) for s in samples] for name in names}
    arguments["prompts"] = [s.prompt.text for s in samples]
    arguments["completions"] = [
        s.text if isinstance(s.prompt.text, str) else conversation(s) for s in samples
    ]
    arguments["completion_ids"] = [list(s.completion_ids) for s in samples]
    if function is not None:
        parameters = inspect.signature(function).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            taken = {p.name for p in parameters}
            arguments = {name: value for name, value in arguments.items() if name in taken}
    return arguments


def conversation(sample: Sample) -> list[dict[str, str]]:
    """The completion as messages; in a dialogue the environment is the user."""
    messages = sample.messages or (sample.text,)
    return [{"role": ("assistant", "user")[i % 2], "content": text} for i, text in enumerate(messages)]


def call_all(
    functions: Mapping[str, RewardFunction], samples: Sequence[Sample], limits_s: Mapping[str, float]
) -> dict[str, list[float | None] | RewardError]:
    """Each function's rewards for `samples`, or the error it failed with.

    Asynchronous functions run at the same time, in one event loop; the others one after another.
    Raises `RewardError` for a function that has not returned after its limit in seconds: its thread cannot be ended, so
    the run cannot sensibly go on.
    """
    results: dict[str, list[float | None] | RewardError] = {}
    asynchronous = {name: f for name, f in functions.items() if _is_async(f)}
    if asynchronous:
        names = ", ".join(asynchronous)
        limit_s = max(limits_s[name] for name in asynchronous)
        outcomes = in_thread(names, lambda: asyncio.run(_gather(asynchronous, samples)), limit_s, len(samples))
        for name, outcome in zip(asynchronous, outcomes, strict=True):
            results[name] = _checked(name, outcome, samples)
    for name, function in functions.items():
        if name not in asynchronous:
            outcome = in_thread(name, lambda f=function: _attempt(f, samples), limits_s[name], len(samples))
            results[name] = _checked(name, outcome, samples)
    return {name: results[name] for name in functions}


def _is_async(function: RewardFunction) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


async def _gather(functions: dict[str, RewardFunction], samples: Sequence[Sample]) -> list[Any]:
    calls = (function(**trl_arguments(samples, function)) for function in functions.values())
    return await asyncio.gather(*calls, return_exceptions=True)


def _attempt(function: RewardFunction, samples: Sequence[Sample]) -> Any:
    try:
        return function(**trl_arguments(samples, function))
    except Exception as error:  # noqa: BLE001 - a user's function may raise anything; it is reported with the sample's id
        return error


def in_thread(name: str, call: Callable[[], Any], limit_s: float, count: int) -> Any:
    """What `call` returns. Raises `RewardError` where it has not returned after `limit_s` seconds; `count`: of what it
    was asked about, for the message."""
    results: list[Any] = []
    context = contextvars.copy_context()
    set_device = _cuda_device()

    def run() -> None:
        set_device()
        results.append(context.run(call))

    thread = threading.Thread(target=run, name=f"reward {name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise RewardError(
            f"reward function {name} has not returned after {limit_s:g} s for {count} samples: it hangs, or "
            "its timeout_s in rewards.functions is too small for it"
        )
    if not results:
        raise RewardError(f"reward function {name} ended its thread (SystemExit?); it must return a list of numbers")
    return results[0]


def _cuda_device() -> Callable[[], None]:
    """CUDA's current device belongs to a thread: without this, a reward model would run on device 0 of every rank."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return lambda: None
    device = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(device)


def _checked(name: str, outcome: Any, samples: Sequence[Sample]) -> list[float | None] | RewardError:
    """The rewards as floats; an error that names the function and the sample for anything else."""
    if isinstance(outcome, RewardError):
        return outcome
    if isinstance(outcome, BaseException):
        error = RewardError(f"reward function {name} raised {type(outcome).__name__}: {outcome} ({_which(samples)})")
        error.__cause__ = outcome
        return error
    if hasattr(outcome, "tolist"):
        outcome = outcome.tolist()
    if not isinstance(outcome, (list, tuple)) or len(outcome) != len(samples):
        shown = f"{len(outcome)} values" if isinstance(outcome, (list, tuple)) else f"a {type(outcome).__name__}"
        return RewardError(
            f"reward function {name} returned {shown} for {len(samples)} samples ({_which(samples)}); "
            "it must return a list with one number or None per completion"
        )
    rewards: list[float | None] = []
    for value, sample in zip(outcome, samples, strict=True):
        if hasattr(value, "item"):
            value = value.item()
        if value is not None and (not isinstance(value, numbers.Real) or not math.isfinite(value)):
            return RewardError(
                f"reward function {name} returned {value!r} for sample {sample.id!r}; "
                "it must be a finite number or None"
            )
        rewards.append(None if value is None else float(value))
    return rewards


def _which(samples: Sequence[Sample]) -> str:
    if len(samples) == 1:
        return f"sample {samples[0].id!r}"
    return f"a batch of {len(samples)} samples, {samples[0].id!r} to {samples[-1].id!r}"

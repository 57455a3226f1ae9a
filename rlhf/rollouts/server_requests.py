"""Which server makes which completion, what it is asked, and whether its answer is the answer to that question."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf.config.rollouts import SamplingConfig
from rlhf.data.types import Sample
from rlhf.rollouts.engine import EngineError, Request
from rlhf.rollouts.vllm_sampling import NonFiniteLogits, make_sample, sampling_arguments

Server = TypeVar("Server", bound=Hashable)

# vLLM's label of the weights that it loaded at its start
STARTUP_VERSION = "default"
_ID_PREFIX = "generate-tokens-"
# what JSON has for minus infinity and NaN in vLLM's answers
_NO_LOGP = -9999.0


class UselessAnswer(RuntimeError):
    """The completion was made with other weights than asked for, or was broken off: it is made again."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A completion that is still to be made: its place in the caller's list, and how often it was asked for."""

    place: int
    request: Request
    attempt: int = 0


def deal(wanted: Sequence[Wanted], servers: Sequence[Server], first: int = 0) -> dict[Server, list[Wanted]]:
    """Completions by server: all of one prompt to one server, which computes the prompt once; prompts in turn.

    `first`: whose turn it is (the rank, so that the ranks' few prompts do not all meet on one server).
    """
    turn: dict[str, int] = {}
    dealt: dict[Server, list[Wanted]] = {server: [] for server in servers}
    for each in wanted:
        number = turn.setdefault(each.request.prompt.id, len(turn))
        dealt[servers[(first + number) % len(servers)]].append(each)
    return {server: part for server, part in dealt.items() if part}


def request_id(call: str, wanted: Wanted) -> str:
    """Unique over ranks, calls and attempts. `call` names the rank and the call."""
    return f"{call}.{wanted.place}.{wanted.attempt}:{wanted.request.prompt.id}/{wanted.request.index}"


def request_body(
    identity: str, request: Request, sampling: SamplingConfig, stop_token_ids: Sequence[int]
) -> dict[str, Any]:
    """For vLLM's endpoint that takes and gives token ids."""
    return {
        "request_id": identity,
        "token_ids": list(request.prompt.token_ids),
        "return_token_ids": True,
        "sampling_params": sampling_arguments(request, sampling, stop_token_ids),
    }


def read_answer(
    answer: dict[str, Any],
    identity: str,
    request: Request,
    label: str,
    version: int,
    tokenizer: PreTrainedTokenizerBase,
    server: str,
) -> Sample:
    """The sample in a server's answer.

    `label`: of the weights that must have made it, all of it; `version`: the policy's. Raises UselessAnswer,
    NonFiniteLogits, or EngineError where the answer is to another request or lacks something.
    """
    got = str(answer.get("request_id")).removeprefix(_ID_PREFIX)
    if got != identity:
        raise EngineError(f"{server}: generate: asked for {identity!r}, the answer is to {got!r}")
    if answer.get("prompt_token_ids") != list(request.prompt.token_ids):
        raise EngineError(f"{server}: generate: {identity!r} was answered for another prompt")
    try:
        (choice,) = answer["choices"]
        token_ids = tuple(choice["token_ids"])
        content = choice["logprobs"]["content"]
        logps = tuple(float(each["logprob"]) for each in content)
        drawn = tuple(each["token_id"] for each in content)
        labels = {span["version"] for span in choice["weight_versions"] or []}
        reason = choice["finish_reason"]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"{server}: generate: the answer to {identity!r} lacks what training needs ({type(error).__name__}: "
            f"{error}); vLLM 0.32 gives it, is the server of another version?"
        ) from error
    if drawn != token_ids:
        raise EngineError(f"{server}: generate: {identity!r}: log-probs of {drawn[:5]}... for {token_ids[:5]}...")
    if labels != {label}:
        raise UselessAnswer(f"{server}: generate: made with weights {sorted(labels)}, not with {label!r}")
    if reason == "abort":
        raise UselessAnswer(f"{server}: generate: {identity!r} was broken off after {len(token_ids)} tokens")
    if any(logp <= _NO_LOGP for logp in logps):
        raise NonFiniteLogits(
            f"{server}: sample {request.prompt.id}/{request.index}: the logits are not finite (weights of version "
            f"{version})"
        )
    return make_sample(request, token_ids, logps, reason, version, tokenizer)

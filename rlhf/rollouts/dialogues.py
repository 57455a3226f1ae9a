"""Sessions of a model with an environment, turn by turn, on any engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from rlhf.config.environments import EnvironmentConfig
from rlhf.config.rollouts import SamplingConfig
from rlhf.data.errors import DataError
from rlhf.data.seeds import derive_seed
from rlhf.data.types import Sample
from rlhf.environments.build import build_environment
from rlhf.environments.protocol import Environment, EnvironmentFailure, Reply, State
from rlhf.rollouts.chat_turns import ChatTurns
from rlhf.rollouts.engine import Engine, Request


class Sampler(Protocol):
    """What makes samples: an engine, or an environment on one."""

    def generate(self, requests: Sequence[Request], sampling: SamplingConfig) -> list[Sample]: ...


class Dialogues:
    """Plays sessions of `environment` with `config.turns` turns.

    Raises DataError for a tokenizer that has no dialogues, and as `build_environment` does.
    """

    def __init__(
        self, config: EnvironmentConfig, tokenizer: PreTrainedTokenizerBase, environment: Environment | None = None
    ) -> None:
        self.config, self.chat = config, ChatTurns(tokenizer)
        self.environment = environment or build_environment(config)

    def on(self, engine: Engine) -> "DialogueSampler":
        """A sampler whose samples are sessions on `engine`."""
        return DialogueSampler(self, engine)

    def play(self, engine: Engine, requests: Sequence[Request], sampling: SamplingConfig) -> list[Sample]:
        """One session for each request, in order: `Sample.turns`, `turn_rewards` and `messages` are set.

        Each turn is one call of the engine with all sessions that go on; `sampling.max_tokens` is of a turn. The tokens
        of turn t are a function of (request seed, t), what the model has seen and its weights. A session that is cut
        ends with the environment's answer to its last turn: the state in which it would go on.
        Raises EnvironmentFailure, naming sample and turn, where the environment raises or answers with what cannot be
        used; DataError for prompts that are no conversation; and as the engine does.
        """
        sessions = [self._start(request) for request in requests]
        for turn in range(self.config.turns):
            live = [session for session in sessions if not session.done]
            if not live:
                break
            answers = engine.generate([session.request_of(turn) for session in live], sampling, continues=turn > 0)
            for session, answer in zip(live, answers, strict=True):
                self._take_turn(session, answer)
        return [session.sample() for session in sessions]

    def _start(self, request: Request) -> "_Session":
        prompt = request.prompt
        if isinstance(prompt.text, str):
            raise DataError(
                f"prompt {prompt.id!r} is plain text, and an environment answers in a conversation: set data.as_chat "
                "to true, or give prompts as messages"
            )
        session = _Session(request)
        seed = derive_seed(request.seed, "environment")
        session.state = _asked(session, "start", lambda: self.environment.start(prompt, seed))
        return session

    def _take_turn(self, session: "_Session", answer: Sample) -> None:
        reply = _asked(session, "answer", lambda: self.environment.answer(session.state, answer.text))
        if not isinstance(reply, Reply):
            raise EnvironmentFailure(
                f"{session.place}: the environment answered with {type(reply).__name__}, and must with a Reply"
            )
        ids: tuple[int, ...] = ()
        if not reply.done:
            ids = self.chat.between(reply.text, answer.completion_ids)
            if len(ids) > self.config.max_reply_tokens:
                raise EnvironmentFailure(
                    f"{session.place}: the environment's answer has {len(ids)} tokens with the chat template, and "
                    f"environment.max_reply_tokens is {self.config.max_reply_tokens}: raise it, or answer in fewer "
                    "words"
                )
        session.add(answer, reply, ids)


@dataclass(frozen=True, slots=True)
class DialogueSampler:
    """Sessions on one engine; stands where an engine samples."""

    dialogues: Dialogues
    engine: Engine

    def generate(self, requests: Sequence[Request], sampling: SamplingConfig) -> list[Sample]:
        """See `Dialogues.play`."""
        return self.dialogues.play(self.engine, requests, sampling)


@dataclass(slots=True)
class _Session:
    """A session while it is played."""

    request: Request
    state: State = None
    done: bool = False
    version: int = 0
    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    turns: list[tuple[int, int]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        return f"sample {self.request.prompt.id}/{self.request.index}, turn {len(self.turns)}"

    def request_of(self, turn: int) -> Request:
        prompt = self.request.prompt
        seen = replace(prompt, token_ids=(*prompt.token_ids, *self.token_ids))
        return Request(seen, self.request.index, derive_seed(self.request.seed, "turn", turn))

    def add(self, answer: Sample, reply: Reply, reply_ids: tuple[int, ...]) -> None:
        self.token_ids += [*answer.completion_ids, *reply_ids]
        self.logps += [*answer.logps, *(0.0 for _ in reply_ids)]
        self.turns.append((len(answer.completion_ids), len(reply_ids)))
        self.rewards.append(float(reply.reward))
        self.messages += [answer.text, reply.text] if reply.text else [answer.text]
        self.state, self.done, self.version = reply.state, reply.done, answer.policy_version

    def sample(self) -> Sample:
        return Sample(
            prompt=self.request.prompt,
            index=self.request.index,
            completion_ids=tuple(self.token_ids),
            logps=tuple(self.logps),
            finish_reason="stop" if self.done else "length",
            policy_version=self.version,
            seed=self.request.seed,
            text="\n".join(self.messages[::2]),
            turns=tuple(self.turns),
            turn_rewards=tuple(self.rewards),
            messages=tuple(self.messages),
        )


def _asked(session: _Session, method: str, call: Callable[[], Any]) -> Any:
    """What the environment says; its errors with the sample's name."""
    try:
        return call()
    except Exception as error:
        raise EnvironmentFailure(
            f"{session.place}: the environment's {method} raised {type(error).__name__}: {error}"
        ) from error

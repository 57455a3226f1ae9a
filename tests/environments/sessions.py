"""Dialogues for tests: samples with turns of any lengths, an engine that says what it is told, own environments."""

import re
from collections.abc import Callable, Sequence

import torch

from rlhf.config.rollouts import SamplingConfig
from rlhf.data.types import Prompt, Sample
from rlhf.environments.protocol import Reply
from rlhf.rollouts.engine import Request


class Echo:
    """Counts its turns in the state, pays 1 for a text with an e, and ends after `ends_after` turns."""

    def __init__(self, ends_after: int = 99) -> None:
        self.ends_after = ends_after

    def start(self, prompt: Prompt, seed: int) -> int:
        return 0

    def answer(self, state: int, text: str) -> Reply:
        return Reply(f"turn {state}", float("e" in text), done=state + 1 >= self.ends_after, state=state + 1)


class Failing(Echo):
    """Raises in the third turn."""

    def answer(self, state: int, text: str) -> Reply:
        if state == 2:
            raise ZeroDivisionError("no such thing")
        return super().answer(state, text)


class Silent(Echo):
    def answer(self, state: int, text: str) -> Reply:
        return None


def by_hundreds() -> Echo:
    """What a config names."""
    return Echo()


class Scripted:
    """An engine that says `say(request)`, tokenised, and a stop token unless the text ends with `...`."""

    dtype = torch.float32

    def __init__(self, tokenizer, say: Callable[[Request], str]) -> None:
        self.tokenizer, self.say = tokenizer, say
        self.calls: list[list[Request]] = []
        self.continued: list[bool] = []

    def generate(
        self, requests: Sequence[Request], sampling: SamplingConfig, *, continues: bool = False
    ) -> list[Sample]:
        self.calls.append(list(requests))
        self.continued.append(continues)
        samples = []
        for request in requests:
            text = self.say(request)
            is_cut = text.endswith("...")
            ids = self.tokenizer(text.removesuffix("..."), add_special_tokens=False)["input_ids"]
            ids = tuple(ids) + (() if is_cut else (self.tokenizer.eos_token_id,))
            logps = tuple(-0.1 - 0.01 * place for place in range(len(ids)))
            reason = "length" if is_cut else "stop"
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            samples.append(Sample(request.prompt, request.index, ids, logps, reason, 0, request.seed, text))
        return samples


def messages_of(text: str) -> list[tuple[str, str]]:
    """(role, content) of a rendering by the demo tokenizer's template."""
    return re.findall(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n|$)", text, flags=re.DOTALL)


def dialogue_samples(groups: int = 6, size: int = 4) -> list[Sample]:
    """Graded sessions of random ids: 1 to 4 turns, the environment's last part empty or not; one group is cut, one has
    equal rewards, and the first sample of each has no turns: the plain case stands beside."""
    generator = torch.Generator().manual_seed(4)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    samples = []
    for group in range(groups):
        ids = tuple(draw(3, 40_000) for _ in range(3 + group))
        prompt = Prompt(f"d:{group}", ids, [{"role": "user", "content": "?"}])
        for index in range(size):
            count = draw(1, 5)
            turns = tuple((draw(1, 4), draw(1, 5) if t + 1 < count else draw(0, 3)) for t in range(count))
            length = sum(map(sum, turns))
            ids = tuple(draw(3, 40_000) for _ in range(length))
            own = [t for mine, theirs in turns for t in [True] * mine + [False] * theirs]
            logps = tuple(-10.0 - draw(0, 100) / 100 if mine else 0.0 for mine in own)
            rewards = tuple(float(draw(0, 2)) for _ in turns)
            reward = 1.0 if group == 1 else sum(rewards) + draw(0, 100) / 100
            plain = index == 0
            samples.append(Sample(
                prompt, index, ids, tuple(lp or -10.0 for lp in logps) if plain else logps,
                "length" if group == 2 else "stop", 0, 0, rewards={}, reward=reward,
                turns=() if plain else turns, turn_rewards=() if plain else rewards,
            ))  # fmt: skip
    return samples


def own_mask(sample: Sample) -> list[bool]:
    """For each completion token whether the policy wrote it, one token after the other."""
    if not sample.turns:
        return [True] * len(sample.completion_ids)
    mask = []
    for mine, theirs in sample.turns:
        for _ in range(mine):
            mask.append(True)
        for _ in range(theirs):
            mask.append(False)
    return mask

"""From prompts to requests: every sample of a step gets its own seed."""

from collections.abc import Sequence

from rlhf.data.seeds import derive_seed
from rlhf.data.types import Prompt
from rlhf.rollouts.engine import Request


def make_requests(prompts: Sequence[Prompt], samples_per_prompt: int, run_seed: int, step: int) -> list[Request]:
    """`samples_per_prompt` requests a prompt, prompt by prompt, seeded by (run seed, step, prompt id, sample index)."""
    return [
        Request(prompt, index, derive_seed(run_seed, step, prompt.id, index))
        for prompt in prompts
        for index in range(samples_per_prompt)
    ]

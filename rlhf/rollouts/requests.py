"""From prompts to requests: every sample of a step gets its own index and seed."""

from collections import Counter
from collections.abc import Sequence

from rlhf.data.seeds import derive_seed
from rlhf.data.types import Prompt
from rlhf.rollouts.engine import Request


def make_requests(
    prompts: Sequence[Prompt], samples_per_prompt: int, run_seed: int, step: int, seen: Counter[str] | None = None
) -> list[Request]:
    """`samples_per_prompt` requests a prompt, prompt by prompt, seeded by (run seed, step, prompt id, sample index).

    A prompt that comes again in a step (small datasets, at the border of two epochs) goes on counting its indices, so
    that no two samples of a step are drawn with one seed. `seen` carries the counts from call to call within a step.
    """
    seen = Counter() if seen is None else seen
    requests = []
    for prompt in prompts:
        first = seen[prompt.id] * samples_per_prompt
        seen[prompt.id] += 1
        requests += [
            Request(prompt, index, derive_seed(run_seed, step, prompt.id, index))
            for index in range(first, first + samples_per_prompt)
        ]
    return requests

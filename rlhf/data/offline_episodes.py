"""A dataset of graded completions as episodes: what a critic learns from besides the policy's own rollouts."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from rlhf.config.data import DatasetConfig
from rlhf.data.errors import DataError
from rlhf.data.examples import encode_example
from rlhf.data.formatting import PromptFormatter
from rlhf.data.rows import Row, read_rows
from rlhf.data.types import Prompt, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def load_offline_samples(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
    max_completion_tokens: int,
    bounds: tuple[float, float],
) -> list[Sample]:
    """Rows with `prompt`, `completion` (text or messages) and `reward`, as graded samples, in the file's order.

    Nobody drew them here: their log-probs are NaN. Rows with longer completions are left out and counted in a warning.
    Raises DataError (file, row and field in the message) for rows that cannot be used, rewards that are no numbers
    within `bounds`, and where none is left.
    """
    config = DatasetConfig(path=path, max_prompt_tokens=max_prompt_tokens)
    formatter, rows, samples = PromptFormatter(config, tokenizer), read_rows(config), []
    longest = max_prompt_tokens + max_completion_tokens
    for row in rows:
        reward = _reward(row, bounds)
        example = encode_example(row, formatter, tokenizer, longest)
        if example is None:
            continue
        if example.learned_from == 0:
            raise DataError(f"{row.place}: an offline episode has a prompt and a completion, as fields of their own")
        prompt_ids = example.token_ids[: example.learned_from]
        completion_ids = example.token_ids[example.learned_from :]
        if len(completion_ids) > max_completion_tokens:
            continue
        prompt = Prompt(row.id, tuple(prompt_ids), row.fields["prompt"])
        samples.append(
            Sample(
                prompt, 0, tuple(completion_ids), (float("nan"),) * len(completion_ids), "stop", 0, 0,
                rewards={"offline": reward}, reward=reward,
            )
        )  # fmt: skip
    if not samples:
        raise DataError(
            f"{path}: all {len(rows)} completions are above sampling.max_tokens = {max_completion_tokens}: raise it"
        )
    if len(samples) < len(rows):
        log.warning("%s: left out %d of %d rows, above sampling.max_tokens = %d or data.max_prompt_tokens = %d",
                    path, len(rows) - len(samples), len(rows), max_completion_tokens, max_prompt_tokens)  # fmt: skip
    return samples


def _reward(row: Row, bounds: tuple[float, float]) -> float:
    value = row.fields.get("reward")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{row.at('reward')}: is {value!r}, and must be a number: what the completion earned")
    low, high = bounds
    if not low <= value <= high:
        raise DataError(
            f"{row.at('reward')}: is {value:g}, and algorithm.actions.bounds are [{low:g}, {high:g}]: widen them, or "
            "scale the rewards"
        )
    return float(value)

"""A preference dataset as pairs that can be taken by index: read, checked and tokenised once, whole."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf.config.data import PreferencesConfig
from rlhf.data.errors import DataError
from rlhf.data.formatting import PromptFormatter, Text
from rlhf.data.preferences import encode_preference, read_preference
from rlhf.data.rows import Rows, read_rows
from rlhf.data.types import Prompt, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CHOSEN, REJECTED = 1.0, 0.0
"""Rewards of a pair's two completions: what is better has the higher one."""


@dataclass(frozen=True)
class PreferenceSource:
    """The pairs of a dataset; token ids are kept (4 bytes each), texts are read from the row on access."""

    name: str
    fingerprint: str
    _formatter: PromptFormatter
    _rows: Rows
    _kept: Sequence[int]
    _ids: Sequence[tuple[array, array, array]]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> tuple[Sample, Sample]:
        """The chosen completion (index 0) and the rejected one (index 1), with rewards 1 and 0.

        Nobody drew them here: their log-probs are NaN, and their policy version is 0.
        """
        row = self._rows[self._kept[index]]
        text, *completions = read_preference(row)
        prompt_ids, *completion_ids = self._ids[index]
        prompt = Prompt(row.id, tuple(prompt_ids), self._formatter.complete(text, row.place))
        chosen, rejected = (
            Sample(
                prompt, side, tuple(ids), (float("nan"),) * len(ids), "stop", 0, 0, _words(completion),
                {"preference": reward}, reward,
            )
            for side, (completion, ids, reward) in enumerate(
                zip(completions, completion_ids, (CHOSEN, REJECTED), strict=True)
            )
        )  # fmt: skip
        return chosen, rejected


def load_preferences(
    config: PreferencesConfig, tokenizer: PreTrainedTokenizerBase, max_completion_tokens: int
) -> PreferenceSource:
    """The pairs of a `data` section of type `preferences`.

    Rows with an overlong prompt (under `overlong_prompts: skip`) or completion are left out and counted in a warning.
    Raises DataError (file, row and field in the message) for rows that cannot be used, and where none is left.
    """
    formatter = PromptFormatter(config, tokenizer)
    rows, kept, all_ids, digest = read_rows(config), array("q"), [], hashlib.blake2b(digest_size=16)
    for index, row in enumerate(rows):
        pair = encode_preference(row, formatter, tokenizer, max_completion_tokens)
        if pair is None:
            continue
        kept.append(index)
        all_ids.append(tuple(array("i", ids) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)))
        digest.update(repr((pair.id, pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)).encode())
    limits = f"data.max_prompt_tokens = {config.max_prompt_tokens} or sampling.max_tokens = {max_completion_tokens}"
    if not kept:
        raise DataError(f"{config.path}: all {len(rows)} pairs are above {limits}: raise them")
    if len(kept) < len(rows):
        log.warning("%s: left out %d of %d pairs, above %s", config.path, len(rows) - len(kept), len(rows), limits)
    return PreferenceSource(config.path, digest.hexdigest(), formatter, rows, kept, all_ids)


def _words(completion: Text) -> str:
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)

"""From the `data` section of a configuration to prompts that can be taken by index."""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from rlhf.config.data import (
    ArithmeticConfig,
    CountdownConfig,
    DatasetConfig,
    NumberGuessingConfig,
    PromptSourceConfig,
)
from rlhf.data import arithmetic, countdown, number_guessing
from rlhf.data.datasets import read_columns, read_prompt
from rlhf.data.errors import DataError
from rlhf.data.formatting import PromptFormatter, Text
from rlhf.data.generated import Problem
from rlhf.data.order import PromptOrder, PromptSource
from rlhf.data.rows import Rows, read_rows
from rlhf.data.seeds import derive_seed
from rlhf.data.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf.config.evaluation import EvaluationConfig

Split = Literal["train", "held_out"]
GeneratedConfig = ArithmeticConfig | CountdownConfig | NumberGuessingConfig

ROWS_PER_BATCH = 1_000  # tokenised in one call
log = logging.getLogger(__name__)


def load_prompts(
    config: PromptSourceConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    split: Split = "train",
    size: int | None = None,
) -> PromptSource:
    """The prompts of a `data` section.

    Generated tasks make a prompt when it is asked for; `held_out` ones are `size` distinct problems that no run trains
    on, whatever its seed. A dataset is read, checked and tokenised here, whole: what it holds decides its split, and
    `held_out` with a `size` below its length takes a sample that depends on `seed` only.

    Raises DataError (file, row and field in the message) for rows that cannot be used, for overlong prompts under
    `overlong_prompts: error`, and for more held-out problems than there are.
    """
    if isinstance(config, DatasetConfig):
        source = _load_dataset(config, tokenizer)
        return source if size is None or split == "train" else source.sample(size, derive_seed(seed, "held_out"))
    if split == "held_out" and size is None:
        raise ValueError("held-out problems of a generated task are drawn to a size: give one")
    return GeneratedSource(config, tokenizer, seed=seed, split=split, size=config.size if size is None else size)


def load_held_out(
    evaluation: EvaluationConfig, train: PromptSourceConfig, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> PromptSource:
    """The `evaluation.prompts` prompts that a run is measured on; all there are where a dataset has fewer.

    Leave `seed` alone to measure runs with different seeds on the same problems, which makes them comparable.
    """
    return load_prompts(evaluation.data or train, tokenizer, seed=seed, split="held_out", size=evaluation.prompts)


class GeneratedSource:
    """Problems of a generated task, made on access: a user's message where the tokenizer has a chat template.

    Generated prompts are all about as long, so an overlong one is an error under `skip` too.
    """

    def __init__(
        self,
        config: GeneratedConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        split: Split,
        size: int,
    ):
        self._formatter = PromptFormatter(config, tokenizer, as_chat=bool(getattr(tokenizer, "chat_template", None)))
        self._scorer = "environment" if isinstance(config, NumberGuessingConfig) else config.type
        self._size = size
        self.name = f"{config.type}-{_kind(config)}-{split}"
        self._problem = _training(config, seed) if split == "train" else _held_out(config, size, seed).__getitem__
        # the first prompt stands for tokenizer and format, and is checked for length before anything is trained
        first = self[0].token_ids if size else ()
        self.fingerprint = _digest(self.name, str(seed), str(size), str(first))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Prompt:
        if not 0 <= index < self._size:
            raise IndexError(f"{self.name} has {self._size} prompts, and index {index} is not one of them")
        problem, prompt_id = self._problem(index), f"{self.name}:{index}"
        text = self._formatter.complete(problem.question, prompt_id)
        token_ids = self._formatter.fit(self._formatter.encode([text], [prompt_id])[0], prompt_id)
        if token_ids is None:
            raise DataError(f"{prompt_id}: is above data.max_prompt_tokens, and so are its like: raise it")
        return Prompt(prompt_id, tuple(token_ids), text, problem.columns, self._scorer)


def _kind(config: GeneratedConfig) -> str:
    if isinstance(config, ArithmeticConfig):
        return f"level{config.level}"
    return f"{config.numbers}x{config.drift if isinstance(config, NumberGuessingConfig) else config.largest}"


def _training(config: GeneratedConfig, seed: int) -> Callable[[int], Problem]:
    if isinstance(config, ArithmeticConfig):
        return partial(arithmetic.training_problem, config.level, seed)
    if isinstance(config, NumberGuessingConfig):
        return partial(number_guessing.training_session, config.numbers, config.drift, seed)
    return partial(countdown.training_problem, config.numbers, config.largest, seed)


def _held_out(config: GeneratedConfig, size: int, seed: int) -> list[Problem]:
    if isinstance(config, ArithmeticConfig):
        return arithmetic.held_out_problems(config.level, size, seed)
    if isinstance(config, NumberGuessingConfig):
        return number_guessing.held_out_sessions(config.numbers, config.drift, size, seed)
    return countdown.held_out_problems(config.numbers, config.largest, size, seed)


@dataclass(frozen=True)
class DatasetSource:
    """A dataset's prompts; token ids are kept (4 bytes each), the rest is read from the row on access."""

    name: str
    fingerprint: str
    skipped: int
    _config: DatasetConfig
    _formatter: PromptFormatter
    _rows: Rows
    _kept: Sequence[int]
    _token_ids: Sequence[array]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Prompt:
        row = self._rows[self._kept[index]]
        text = self._formatter.complete(read_prompt(row, self._config), row.place)
        return Prompt(row.id, tuple(self._token_ids[index]), text, read_columns(row, self._config))

    def sample(self, size: int, seed: int) -> DatasetSource:
        """`size` prompts in the dataset's order; this source itself where it has no more."""
        if size >= len(self):
            if size > len(self):
                log.warning("%s has %d prompts, and %d are wanted: all are used", self.name, len(self), size)
            return self
        order = PromptOrder(len(self), seed)
        chosen = sorted(order(position) for position in range(size))
        return replace(
            self,
            fingerprint=_digest(self.fingerprint, str(chosen)),
            _kept=[self._kept[i] for i in chosen],
            _token_ids=[self._token_ids[i] for i in chosen],
        )


def _load_dataset(config: DatasetConfig, tokenizer: PreTrainedTokenizerBase) -> DatasetSource:
    formatter = PromptFormatter(config, tokenizer, as_chat=config.as_chat)
    rows = read_rows(config)
    kept, all_ids, digest = array("q"), [], hashlib.blake2b(digest_size=16)
    for start in _progress(range(0, len(rows), ROWS_PER_BATCH), f"tokenising {config.path}"):
        batch = [rows[index] for index in range(start, min(start + ROWS_PER_BATCH, len(rows)))]
        places = [row.place for row in batch]
        answers = [str(read_columns(row, config).get("answer")) for row in batch]
        texts = [formatter.complete(read_prompt(row, config), row.place) for row in batch]
        if start == 0:
            _remark_on_plain_text(texts[0], formatter, config)
        for offset, token_ids in enumerate(formatter.encode(texts, places)):
            fitting = formatter.fit(token_ids, places[offset])
            if fitting is not None:
                kept.append(start + offset)
                all_ids.append(array("i", fitting))
                digest.update(_digest(batch[offset].id, answers[offset], str(fitting)).encode())
    skipped = len(rows) - len(kept)
    if not kept:
        raise DataError(
            f"{config.path}: all {skipped} prompts are above data.max_prompt_tokens = {config.max_prompt_tokens}"
        )
    if skipped:
        log.warning(
            "%s: left out %d of %d prompts, above data.max_prompt_tokens = %d",
            config.path, skipped, len(rows), config.max_prompt_tokens,
        )  # fmt: skip
    return DatasetSource(config.path, digest.hexdigest(), skipped, config, formatter, rows, kept, all_ids)


def _remark_on_plain_text(text: Text, formatter: PromptFormatter, config: DatasetConfig) -> None:
    if isinstance(text, str) and formatter.has_template:
        log.warning(
            "%s: prompts are sent as plain text, and the tokenizer has a chat template: set data.as_chat to true if "
            "the model expects user messages",
            config.path,
        )


def _progress(batches: range, what: str) -> Sequence[int]:
    """A bar on the terminal, on the first process only and only where there is something to wait for."""
    if len(batches) < 3 or os.environ.get("RANK", "0") != "0":
        return batches
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(batches, description=what, console=console, transient=True, disable=not console.is_terminal)


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()

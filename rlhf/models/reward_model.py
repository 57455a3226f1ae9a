"""A reward model: one number for how good an answer is, from any sequence classifier of transformers with one output.

A decoder's score is read at the last token of a text. transformers takes for it the last token that is not
`pad_token_id`: it refuses a batch where the config has none, and reads at an earlier token, silently, where a text ends
in that very token, as it does where pad is the end of a turn. Here each batch is padded with a token that occurs in
none of its texts, and the config names that token during the forward pass. So the model's own code finds the end of
each text, whatever its head is. Encoders read at the first token and ignore the padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf.config.model import ModelConfig
from rlhf.data.errors import DataError
from rlhf.data.formatting import TEMPLATE_ERRORS, Message, Text, check_messages
from rlhf.models.embedded import resolve_model_path
from rlhf.models.loading import load_tokenizer
from rlhf.models.plain_path import standard_attention
from rlhf.models.self_check import UnsupportedArchitecture

Row = list[Message] | tuple[str, str]
"""A conversation that ends with the answer, or (prompt, answer)."""

PROBES: tuple[Row, ...] = (("What is 2 + 3?", "2 + 3 is 5, because 3 + 2 is 5 as well."), ("What is 7?", "7"))
# how far a score may move with the token that is behind a text, in units of max(1, |score|): nothing moves in most
# models, as the shapes are the same; experts get other shapes, which rounds otherwise
FLOAT32_TOLERANCE, HALF_PRECISION_TOLERANCE = 1e-3, 0.1
LARGEST_PADDED_SHARE = 0.25
SHOWN_KEYS = 4


class RewardModelError(ValueError):
    """The checkpoint is no reward model, or gave no number; the message names it and says why."""


class RewardModel:
    """Scores answers with a sequence classifier.

    `path`: a local folder, a hub id or `embedded:NAME`; `revision` and `trust_remote_code` mean what they mean in
    `ModelConfig`. `dtype`: of the backbone; the head and the scores are float32. `token_budget`: most tokens, padding
    included, of a forward pass; a longer text has one of its own. `longest` is the most tokens of a text: the model's
    positions or the tokenizer's limit, whichever is less. `truncated` counts the texts so far that were longer.

    Raises RewardModelError where the checkpoint does not have one label, and where weights are missing from it (they
    would be random, and the scores noise); UnsupportedArchitecture where padding changes the scores; ValueError for a
    budget below 1.
    """

    def __init__(
        self,
        path: str,
        *,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        trust_remote_code: bool = False,
        token_budget: int = 16_384,
    ) -> None:
        if token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, got {token_budget}")
        source = ModelConfig(path=path, revision=revision, trust_remote_code=trust_remote_code)
        self.path = path
        self.truncated = 0
        self.tokenizer = load_tokenizer(source)
        self.model = _load_classifier(source, dtype).to(device)
        _compute_head_in_float32(self.model)
        self.longest = _longest_text(self.model.config, self.tokenizer.model_max_length)
        self._vocabulary = self.model.get_input_embeddings().num_embeddings
        # fewer tokens than the vocabulary has, so that there always is one to pad with
        self._token_budget = min(token_budget, self._vocabulary - 1)
        self._check_padding()

    def score(self, rows: Sequence[Row], places: Sequence[str] | None = None) -> list[float]:
        """One score a row, in order. `places` says where rows come from, for messages (`row 0`, ... if not given).

        A conversation goes through the checkpoint's own chat template, without the header of a next turn. A pair is the
        user's message and its answer; where the tokenizer has no chat template it is the two texts one right behind the
        other, with the special tokens that the tokenizer adds to a text and no others.

        Of a text with more than `longest` tokens the last ones count, behind its beginning-of-sequence or
        classification token if it has one; `truncated` is increased. What a row scores does not depend on the other
        rows, up to the rounding of the backbone's precision.
        Raises DataError, with the place, for a conversation that is malformed, does not end with the assistant, is
        refused by the chat template or has no template, and for a row without tokens; RewardModelError, with the place,
        for a score that is not finite.
        """
        places = [f"row {number}" for number in range(len(rows))] if places is None else places
        token_ids = [self._fit(self._encode(row, place), place) for row, place in zip(rows, places, strict=True)]
        scores = [math.nan] * len(rows)
        for members in padded_batches([len(ids) for ids in token_ids], self._token_budget):
            texts = [token_ids[index] for index in members]
            found = self._forward(texts, _absent_tokens(texts, self._vocabulary)[0])
            for index, score in zip(members, found, strict=True):
                if not math.isfinite(score):
                    raise RewardModelError(
                        f"{places[index]}: the reward model {self.path} gives the score {score}: its weights hold NaN "
                        "or infinity, or its activations overflow (try bfloat16 or float32)"
                    )
                scores[index] = score
        return scores

    def _encode(self, row: Row, place: str) -> list[int]:
        return encode_answer(row, self.tokenizer, place)

    def _fit(self, ids: list[int], place: str) -> list[int]:
        if not ids:
            raise DataError(f"{place}: the tokenizer makes no tokens of this text")
        if len(ids) <= self.longest:
            return ids
        self.truncated += 1
        # encoders read their score at the classification token
        stays = ids[:1] if ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id) else []
        return stays + ids[len(ids) - self.longest + len(stays) :]

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Sequence[int]], pad: int) -> list[float]:
        """The scores of texts that are padded to the longest of them, on the right and with a token of none of them."""
        for config in (self.model.config, self.model.config.get_text_config()):
            config.pad_token_id = pad
        longest = max(map(len, rows))
        input_ids_BS = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in rows])
        is_token_BS = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows])
        device = self.model.device
        score_B1 = self.model(input_ids=input_ids_BS.to(device), attention_mask=is_token_BS.to(device)).logits
        return score_B1.float().squeeze(-1).tolist()

    def _check_padding(self) -> None:
        """Raises UnsupportedArchitecture where a score depends on the token that texts are padded with.

        Rounding plays no part in that, so it is told from a head that reads at the padding in any precision.
        """
        rows = [self._fit(self._encode(row, "a probe"), "a probe") for row in PROBES]
        self.truncated = 0
        tolerance = FLOAT32_TOLERANCE if self.model.dtype == torch.float32 else HALF_PRECISION_TOLERANCE
        pads = _absent_tokens(rows, self._vocabulary)
        for one, other in zip(*(self._forward(rows, pad) for pad in pads), strict=True):
            # NaN is left for `score`, which names the row
            if abs(one - other) > tolerance * max(1.0, abs(one)):
                raise UnsupportedArchitecture(
                    f"{type(self.model).__name__} of {self.path} scores a text {one:.4g} padded with one token and "
                    f"{other:.4g} with another: it reads its score at the padding, or its attention sees it; choose "
                    "another reward model"
                )


def encode_answer(row: Row, tokenizer: PreTrainedTokenizerBase, place: str) -> list[int]:
    """The token ids that a reward model scores, in training as in use.

    A conversation goes through the chat template, without the header of a next turn. A pair is the user's message and
    its answer; where the tokenizer has no chat template it is the two texts one right behind the other.
    Raises DataError as `RewardModel.score` does.
    """
    has_template = bool(tokenizer.chat_template)
    if isinstance(row, tuple):
        prompt, answer = row
        if not has_template:
            return tokenizer(prompt + answer)["input_ids"]
        row = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    elif not has_template:
        raise DataError(
            f"{place}: is a conversation, and the tokenizer of {tokenizer.name_or_path} has no chat template: give "
            "(prompt, answer) pairs, or save a chat template with the checkpoint"
        )
    messages = check_messages(row, place)
    if messages[-1]["role"] != "assistant":
        raise DataError(f"{place}: the last message is from {messages[-1]['role']!r}: the answer to score is missing")
    try:
        # return_dict is true by default from transformers 5 on
        return tokenizer.apply_chat_template(messages, return_dict=False)
    except TEMPLATE_ERRORS as error:
        raise DataError(
            f"{place}: the chat template of {tokenizer.name_or_path} does not accept it: {error}"
        ) from error


def answered(prompt: Text, answer: str) -> Row:
    """The row of a prompt and its answer; an answer goes on with the assistant's message that a prompt ends in."""
    if isinstance(prompt, str):
        return prompt, answer
    if prompt[-1]["role"] == "assistant":
        return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + answer}]
    return [*prompt, {"role": "assistant", "content": answer}]


def padded_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of texts by batch, so that a batch has at most `token_budget` tokens when padded to its longest text.

    The longest come first, so that running out of memory shows at once. No text is padded by more than a quarter of the
    padded length. A text above the budget is a batch of its own. A pure function of its arguments.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[batches[-1][0]] if batches else math.inf
        is_similar = lengths[index] >= longest * (1 - LARGEST_PADDED_SHARE)
        if is_similar and longest * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def check_reward_model(source: ModelConfig) -> None:
    """Refuse what `RewardModel` would refuse of a checkpoint's labels and of its weights' names and shapes.

    The weights themselves are not read, so that a mistake is known before anything long begins.
    """
    _load_classifier(source, torch.float32, device_map="meta")


def _load_classifier(source: ModelConfig, dtype: torch.dtype, device_map: str | None = None) -> PreTrainedModel:
    path = resolve_model_path(source.path)
    options = dict(revision=source.revision, trust_remote_code=source.trust_remote_code)
    config = AutoConfig.from_pretrained(path, **options)
    if config.num_labels != 1:
        raise RewardModelError(
            f"{source.path} is no reward model: it has {config.num_labels} labels (num_labels in its config, "
            f"{', '.join(config.architectures or ['no architecture named'])}), and a reward model has one: name a "
            "sequence classifier that was trained with num_labels 1"
        )
    config.get_text_config().use_cache = False
    model, report = AutoModelForSequenceClassification.from_pretrained(
        path,
        config=config,
        dtype=dtype,
        device_map=device_map,
        attn_implementation=standard_attention(config),
        # other shapes are told below, with what is missing
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    random = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if random:
        unused = sorted(report["unexpected_keys"])
        raise RewardModelError(
            f"{source.path} is no reward model for {type(model).__name__}: it has no weights for {_some(random)}, so "
            f"its scores would be noise; weights without a place: {_some(unused)}"
        )
    return model.eval().requires_grad_(False)


def _compute_head_in_float32(model: PreTrainedModel) -> None:
    """A score of bfloat16 has 8 bits: good answers to one question would tie."""
    backbone = model.base_model
    if backbone is model:
        return  # its layers cannot be told apart
    for layer in model.children():
        if layer is not backbone:
            layer.float().register_forward_pre_hook(_widen_inputs)


def _widen_inputs(layer: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(part.float() if torch.is_tensor(part) and part.is_floating_point() else part for part in inputs)


def _longest_text(config: PreTrainedConfig, tokenizer_limit: int) -> int:
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    # XLNet writes -1 for no limit
    return tokenizer_limit if positions is None or positions < 1 else min(positions, tokenizer_limit)


def _absent_tokens(rows: Sequence[Sequence[int]], vocabulary: int) -> tuple[int, int]:
    """The first two tokens that are in none of `rows`; -1 where a single row, which is not padded, holds them all."""
    used = set(chain.from_iterable(rows))
    absent = chain((token for token in range(vocabulary) if token not in used), (-1, -1))
    return next(absent), next(absent)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN_KEYS]) or "none"
    return shown + (f" and {len(names) - SHOWN_KEYS} more" if len(names) > SHOWN_KEYS else "")

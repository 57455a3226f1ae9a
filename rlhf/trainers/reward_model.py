"""Training a reward model by TRL's RewardTrainer, from a configuration to `<run>/model` and its held-out accuracy."""

import copy
import functools
import json
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config.data import ArithmeticConfig, PreferencesConfig
from rlhf.config.reward_model import RewardModelTrainingConfig
from rlhf.data.errors import DataError
from rlhf.data.formatting import PromptFormatter
from rlhf.data.generated_pairs import pair_fields
from rlhf.data.preferences import read_preference
from rlhf.data.rows import Row
from rlhf.data.stage_rows import stage_rows
from rlhf.models.embedded import resolve_model_path
from rlhf.models.loading import load_tokenizer
from rlhf.models.plain_path import standard_attention
from rlhf.models.reward_model import RewardModel, RewardModelError, encode_answer
from rlhf.models.reward_model import Row as ScoredRow
from rlhf.trainers.stage import (
    OurSchedule,
    Recorder,
    SectionOptimizer,
    export,
    open_folder,
    ordered,
    quieten,
    stage_arguments,
    training_dtype,
)
from rlhf.trainers.trl_names import TRLRewardConfig, TRLRewardTrainer
from rlhf.training.run_folder import RunFolder, write_atomically
from rlhf.training.statistics import wilson_interval

Pair = tuple[ScoredRow, ScoredRow]
"""Chosen and rejected, as a reward model is given them."""


class _Trainer(OurSchedule, TRLRewardTrainer):
    pass


def run(config: RewardModelTrainingConfig) -> Path:
    """Train as configured; returns the run's folder. Goes on from the newest whole checkpoint where there is one.

    The held-out accuracy is that of the exported checkpoint, loaded as the online recipes load it.
    Raises DataError for rows that cannot be used, RewardModelError where more than the head would be new.
    """
    folder, checkpoint = open_folder(config)
    arguments = TRLRewardConfig(
        center_rewards_coefficient=config.center_rewards, **stage_arguments(config, folder.path)
    )  # fmt: skip
    is_main = arguments.distributed_state.is_main_process
    tokenizer = load_tokenizer(config.model)
    rows, held_out = load_pairs(config, tokenizer)
    model = load_classifier(config)
    pad_before = model.config.get_text_config().pad_token_id
    trainer = _Trainer(
        model, arguments, train_dataset=Dataset.from_list(rows).select(ordered(len(rows), config)),
        processing_class=with_other_pad(tokenizer, rows), callbacks=[Recorder(folder, config.training.steps)],
        optimizer_cls_and_kwargs=(SectionOptimizer, {
            "section": config.optimizer, "seed": config.run.seed, "overrides": head_overrides(model, config.head_lr),
        }),
    )  # fmt: skip
    trainer.schedule = config.schedule
    quieten(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    if is_main:
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id if pad_before is None else pad_before
        dtype = getattr(torch, config.model.dtype)
        export(model, load_tokenizer(config.model), folder.model, dtype, head_dtype=torch.float32)
        scorer = RewardModel(str(folder.model), device=trainer.accelerator.device, dtype=dtype)
        record_accuracy(folder, scorer, held_out, config.training.steps)
        print(f"model: {folder.model}")
    arguments.distributed_state.wait_for_everyone()
    return folder.path


def load_classifier(config: RewardModelTrainingConfig) -> nn.Module:
    """A classifier with one label on the checkpoint's backbone, with adapters where they are configured.

    Raises RewardModelError where weights other than those of the head are missing from the checkpoint: they would be
    random, and no training of a few thousand pairs makes up for it.
    """
    path = resolve_model_path(config.model.path)
    source = dict(revision=config.model.revision, trust_remote_code=config.model.trust_remote_code)
    model_config = AutoConfig.from_pretrained(path, num_labels=1, **source)
    transformers.logging.set_verbosity_error()  # its report of new weights: ours is below
    with torch.random.fork_rng():
        torch.manual_seed(config.run.seed)  # for the head
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, config=model_config, dtype=training_dtype(config), output_loading_info=True,
            attn_implementation=standard_attention(model_config), **source,
        )  # fmt: skip
        transformers.logging.set_verbosity_warning()
        new = {name for name in report["missing_keys"] if not _is_head(name, model)}
        if new:
            raise RewardModelError(
                f"{config.model.path} lacks weights of {type(model).__name__} beside its head: "
                f"{', '.join(sorted(new)[:4])}{' and more' if len(new) > 4 else ''}; they would be random. Start from "
                "a whole checkpoint of a causal language model or of a classifier"
            )
        lora = config.model.lora
        if lora is None:
            return model
        head = head_names(model)
        targets = lora.target_modules
        return get_peft_model(model, PeftLoraConfig(
            task_type="SEQ_CLS", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, modules_to_save=head,
            target_modules=targets if isinstance(targets, str) else list(targets),
        ))  # fmt: skip


def head_names(model: PreTrainedModel) -> list[str]:
    """Layers beside the backbone."""
    return [name for name, layer in model.named_children() if layer is not model.base_model]


def head_overrides(model: nn.Module, lr: float | None) -> dict[str, dict[str, float]]:
    """Group keys for the head, by a regular expression of its parameters' names."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return {} if lr is None else {rf"(^|\.){re.escape(name)}\.": {"lr": lr} for name in head_names(inner)}


def _is_head(name: str, model: PreTrainedModel) -> bool:
    return not name.startswith(f"{model.base_model_prefix}.")


def load_pairs(
    config: RewardModelTrainingConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[dict[str, list[int]]], list[Pair]]:
    """(`chosen_ids` and `rejected_ids` of the rows to train on, held-out pairs)."""
    rows, others = stage_rows(
        config.data, config.evaluation.data, train=config.training.steps * config.training.rows_per_step,
        held_out=config.evaluation.pairs, seed=config.run.seed,
        make=functools.partial(pair_fields, wordings=config.wordings),
    )  # fmt: skip
    encoded = [encoded for _, encoded in _usable(rows, config.data, tokenizer, config, "to train on")]
    source = config.evaluation.data or config.data
    return encoded, [pair for pair, _ in _usable(others, source, tokenizer, config, "held out")]


def _usable(
    rows: Sequence[Row], source: ArithmeticConfig | PreferencesConfig, tokenizer: PreTrainedTokenizerBase,
    config: RewardModelTrainingConfig, what: str,
) -> list[tuple[Pair, dict[str, list[int]]]]:  # fmt: skip
    has_template = bool(tokenizer.chat_template)
    formatter = PromptFormatter(source, tokenizer, as_chat=isinstance(source, ArithmeticConfig) and has_template)
    found, limit = [], config.training.max_length
    for row in rows:
        pair = read_pair(row, formatter)
        ids = [encode_answer(each, tokenizer, row.place) for each in pair]
        if ids[0] == ids[1]:
            raise DataError(f"{row.place}: chosen and rejected have the same tokens, no preference: remove the row")
        if max(map(len, ids)) <= limit and _prompt_fits(row, formatter):
            found.append((pair, {"chosen_ids": ids[0], "rejected_ids": ids[1]}))
    if not found:
        raise DataError(
            f"all {len(rows)} pairs {what} are above training.max_length = {limit} or data.max_prompt_tokens = "
            f"{source.max_prompt_tokens}: raise them"
        )
    if len(found) < len(rows):
        print(f"left out {len(rows) - len(found)} of {len(rows)} pairs {what}: too long")
    return found


def read_pair(row: Row, formatter: PromptFormatter) -> Pair:
    """(chosen, rejected) with their prompt; text goes through the chat template where there is one, as `RewardModel`
    sends it. Raises DataError as `read_preference` and `PromptFormatter.complete` do."""
    prompt, *answers = read_preference(row)
    prompt = formatter.complete(prompt, row.place)
    if isinstance(prompt, str):
        return tuple((prompt, answer) for answer in answers)
    return tuple(
        [*prompt, *([{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer)]
        for answer in answers
    )


def _prompt_fits(row: Row, formatter: PromptFormatter) -> bool:
    prompt = formatter.complete(read_preference(row)[0], row.place)
    return formatter.fit(formatter.encode([prompt], [row.place])[0], row.place) is not None


def with_other_pad(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> PreTrainedTokenizerBase:
    """The tokenizer, or where a text ends in its pad token a copy with another.

    transformers reads a text's score at the last token that is not pad: with pad = end of turn that would be one
    before the last, and `RewardModel` reads at the last. Raises DataError where every token occurs in the texts.
    """
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if all(ids[-1] != pad for row in rows for ids in row.values()):
        return tokenizer
    used = set(chain.from_iterable(ids for row in rows for ids in row.values()))
    absent = next((token for token in range(len(tokenizer)) if token not in used), None)
    if absent is None:
        raise DataError("texts end in the pad token, and every other token of the vocabulary occurs in them")
    changed = copy.deepcopy(tokenizer)
    changed.pad_token = changed.convert_ids_to_tokens(absent)
    return changed


def record_accuracy(folder: RunFolder, model: RewardModel, pairs: Sequence[Pair], step: int) -> dict[str, float]:
    """Score `pairs`, print how often the chosen one is above the rejected one, write it to `held_out.json`.

    A tie counts as wrong: it is no preference.
    """
    scores = model.score([row for pair in pairs for row in pair])
    gaps = [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]
    right, count = sum(gap > 0 for gap in gaps), len(gaps)
    low, high = wilson_interval(right, count)
    result = {
        "accuracy": right / count, "low": low, "high": high, "right": right, "n": count, "step": step,
        "mean_margin": sum(gaps) / count, "mean_score": sum(scores) / len(scores),
    }  # fmt: skip
    write_atomically(folder.path / "held_out.json", [json.dumps(result, indent=2).encode()])
    print(
        f"held-out pairs: {right} of {count} in the right order: {right / count:.1%} (95 % {low:.1%} to {high:.1%}), "
        f"mean margin {result['mean_margin']:.2f}",
        flush=True,
    )
    return result

"""Supervised fine-tuning by TRL's SFTTrainer, from a configuration to `<run>/model`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config.data import ArithmeticConfig
from rlhf.config.sft import SFTConfig
from rlhf.data.errors import DataError
from rlhf.data.examples import IGNORED, Example, encode_example
from rlhf.data.formatting import PromptFormatter
from rlhf.data.rows import Row
from rlhf.data.stage_rows import stage_rows
from rlhf.models.embedded import resolve_model_path
from rlhf.models.loading import keep_generation_config_saveable, load_tokenizer
from rlhf.models.lora import add_adapters
from rlhf.models.plain_path import standard_attention
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
from rlhf.trainers.trl_names import TRLSFTConfig, TRLSFTTrainer
from rlhf.training.run_folder import RunFolder
from rlhf.training.statistics import wilson_interval


class _Trainer(OurSchedule, TRLSFTTrainer):
    pass


def run(config: SFTConfig) -> Path:
    """Train as configured; returns the run's folder. Goes on from the newest whole checkpoint where there is one.

    Raises DataError for rows that cannot be used, and where none is left to train on.
    """
    folder, checkpoint = open_folder(config)
    arguments = TRLSFTConfig(
        # rows are tokenised, shuffled and cut already
        shuffle_dataset=False, packing=False, **stage_arguments(config, folder.path)
    )  # fmt: skip
    is_main = arguments.distributed_state.is_main_process
    tokenizer = load_tokenizer(config.model)
    examples, held_out = load_examples(config, tokenizer)
    rows = [{"input_ids": list(each.token_ids), "labels": each.labels} for each in examples]
    trainer = _Trainer(
        load_model(config), arguments, train_dataset=Dataset.from_list(rows).select(ordered(len(rows), config)),
        processing_class=tokenizer, callbacks=[Recorder(folder, config.training.steps)],
        optimizer_cls_and_kwargs=(SectionOptimizer, {"section": config.optimizer, "seed": config.run.seed}),
    )  # fmt: skip
    trainer.schedule = config.schedule
    quieten(trainer)
    if checkpoint is None and held_out and is_main:
        record(folder, 0, trainer.model, held_out, config)
    trainer.train(resume_from_checkpoint=checkpoint)
    if is_main:
        model = trainer.accelerator.unwrap_model(trainer.model)
        if held_out:
            record(folder, config.training.steps, model, held_out, config)
        dtype = getattr(torch, config.model.dtype)
        export(model, load_tokenizer(config.model), folder.model, dtype, head_dtype=dtype)
        print(f"model: {folder.model}")
    arguments.distributed_state.wait_for_everyone()
    return folder.path


def load_model(config: SFTConfig) -> nn.Module:
    """The model to train, with adapters where they are configured."""
    path = resolve_model_path(config.model.path)
    source = dict(revision=config.model.revision, trust_remote_code=config.model.trust_remote_code)
    model_config = AutoConfig.from_pretrained(path, **source)
    model = AutoModelForCausalLM.from_pretrained(
        path, config=model_config, dtype=training_dtype(config), attn_implementation=standard_attention(model_config),
        **source,
    )  # fmt: skip
    keep_generation_config_saveable(model)
    return model if config.model.lora is None else add_adapters(model, config.model.lora, config.run.seed)


def load_examples(
    config: SFTConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Example], list[Example]]:
    """(to train on, held out); says on stdout how many rows were left out for their length."""
    rows = stage_rows(
        config.data, config.evaluation.data, train=config.training.steps * config.training.rows_per_step,
        held_out=config.evaluation.examples, seed=config.run.seed,
        make=lambda problem, draws: {"prompt": problem.question, "completion": problem.columns["answer"]},
    )  # fmt: skip
    as_chat = isinstance(config.data, ArithmeticConfig) and bool(tokenizer.chat_template)
    formatter = PromptFormatter(config.data, tokenizer, as_chat=as_chat)
    other = PromptFormatter(config.evaluation.data, tokenizer) if config.evaluation.data else formatter
    return (
        _encode(rows[0], formatter, tokenizer, config.training.max_length, "to train on"),
        _encode(rows[1], other, tokenizer, config.training.max_length, "held out") if rows[1] else [],
    )


def _encode(
    rows: Sequence[Row], formatter: PromptFormatter, tokenizer: PreTrainedTokenizerBase, max_length: int, what: str
) -> list[Example]:
    encoded = [encode_example(row, formatter, tokenizer, max_length) for row in rows]
    kept = [example for example in encoded if example is not None]
    if not kept:
        raise DataError(
            f"all {len(rows)} rows {what} are above training.max_length = {max_length} or "
            f"data.max_prompt_tokens = {formatter.config.max_prompt_tokens}: raise them"
        )
    if len(kept) < len(rows):
        print(f"left out {len(rows) - len(kept)} of {len(rows)} rows {what}: too long")
    return kept


def record(
    folder: RunFolder, step: int, model: PreTrainedModel, examples: Sequence[Example], config: SFTConfig
) -> None:
    """Evaluate, print, and write a line of evaluations.jsonl."""
    loss, right = evaluate(model, examples, config)
    low, high = wilson_interval(right, len(examples))
    print(
        f"held out, step {step}: loss {loss:.4f}, {right} of {len(examples)} completions right token by token "
        f"({right / len(examples):.1%}, 95 % {low:.1%} to {high:.1%})",
        flush=True,
    )
    values = dict(name="held_out", loss=loss, right=right, n=len(examples), accuracy=right / len(examples), low=low)
    folder.append_evaluation(step, {**values, "high": high})


@torch.no_grad()
def evaluate(model: PreTrainedModel, examples: Sequence[Example], config: SFTConfig) -> tuple[float, int]:
    """(nats a learned token, how many examples have the likeliest token at every learned place: greedy decoding would
    write them)."""
    was_training = model.training
    model.eval()
    total, count, right = 0.0, 0, 0
    for start in range(0, len(examples), config.training.rows_per_micro_batch):
        batch = examples[start : start + config.training.rows_per_micro_batch]
        longest = max(len(each.token_ids) for each in batch)
        ids_BT = torch.tensor([[*each.token_ids, *[0] * (longest - len(each.token_ids))] for each in batch])
        mask_BT = torch.tensor([[1] * len(e.token_ids) + [0] * (longest - len(e.token_ids)) for e in batch])
        labels_BT = torch.tensor([[*each.labels, *[IGNORED] * (longest - len(each.labels))] for each in batch])
        ids_BT, mask_BT, labels_BT = (tensor.to(model.device) for tensor in (ids_BT, mask_BT, labels_BT))
        with torch.autocast(model.device.type, torch.bfloat16, enabled=config.model.dtype == "bfloat16"):
            logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, :-1].float()
        targets_BT = labels_BT[:, 1:]
        total += F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, ignore_index=IGNORED, reduction="sum").item()
        count += int((targets_BT != IGNORED).sum())
        right += int(((logits_BTV.argmax(-1) == targets_BT) | (targets_BT == IGNORED)).all(1).sum())
    model.train(was_training)
    return total / count, right

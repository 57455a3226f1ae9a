"""Supervised fine-tuning of a small model on generated sums, to compare optimizers: seeded, results kept in JSON."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from peers.optimizer_rows import state_bytes_of
from peers.workloads import native_precision
from rlhf.config.model import ModelConfig
from rlhf.config.optimizer import OptimizerConfig, ScheduleConfig
from rlhf.data.arithmetic import held_out_problems, training_problem
from rlhf.data.generated import Problem
from rlhf.models.embedded import resolve_model_path
from rlhf.models.loading import load_tokenizer
from rlhf.training.optimizers import build_optimizer
from rlhf.training.schedule import learning_rate_factor

LEVEL = 3
"""a + b and a - b, both below 100: 16,000 problems to train on."""
HELD_OUT, BATCH = 200, 8
IGNORED = -100
MAX_GRAD_NORM = 1.0
SCHEDULE = ScheduleConfig(type="linear", warmup_steps=10, final_ratio=0.1)


@dataclass(frozen=True)
class SFTRun:
    """What a run was and found. `losses` are of training steps; `held_out_loss` is nats an answer token, `exact` the
    share of held-out sums whose every answer token is the likeliest; `bytes_per_parameter` counts float32 weights,
    gradients and the optimizer's state."""

    optimizer: dict
    seed: int
    steps: int
    losses: list[float]
    held_out_loss: float
    exact: float
    bytes_per_parameter: float
    step_seconds: float


def finished_sft(optimizer: dict, seed: int, steps: int, model: str, folder: Path) -> SFTRun:
    """The run, from its file where it was made before."""
    slug = "-".join(f"{value}" for value in optimizer.values())
    path = folder / f"sft-{slug}-steps{steps}-seed{seed}.json"
    if path.exists():
        return SFTRun(**json.loads(path.read_text()))
    found = train(optimizer, seed, steps, model)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(found)))
    return found


def train(optimizer: dict, seed: int, steps: int, model_path: str) -> SFTRun:
    """Train `model_path` on BATCH sums a step, evaluate on held-out ones."""
    torch.manual_seed(seed)
    path = resolve_model_path(model_path)
    tokenizer = load_tokenizer(ModelConfig(path=path))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    config = TypeAdapter(OptimizerConfig).validate_python(optimizer)
    stepper = build_optimizer(config, model, dict(model.named_parameters()), seed=seed)
    peaks = [group["lr"] for group in stepper.param_groups]
    losses, seconds = [], []
    for step in range(steps):
        started = time.perf_counter()
        problems = [training_problem(LEVEL, seed, step * BATCH + index) for index in range(BATCH)]
        loss = answer_loss(model, *encode(problems, tokenizer))[0]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        for group, peak in zip(stepper.param_groups, peaks, strict=True):
            group["lr"] = peak * learning_rate_factor(step, steps, SCHEDULE)
        stepper.step()
        stepper.zero_grad()
        losses.append(float(loss))
        seconds.append(time.perf_counter() - started)
    held_out_loss, exact = evaluate(model, tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return SFTRun(
        optimizer, seed, steps, losses, held_out_loss, exact, 8 + state_bytes_of(stepper) / parameters,
        statistics.median(seconds),
    )  # fmt: skip


def encode(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor, Tensor]:
    """Padded token ids, their mask, and labels that are IGNORED but for the answers and the end after them."""
    rows, labels = [], []
    for problem in problems:
        prompt = tokenizer(problem.question.partition("?")[0] + "?")["input_ids"]
        answer = tokenizer(f" {problem.columns['answer']}")["input_ids"] + [tokenizer.eos_token_id]
        rows.append(torch.tensor(prompt + answer))
        labels.append(torch.tensor([IGNORED] * len(prompt) + answer))
    pad = nn.utils.rnn.pad_sequence
    mask_BT = pad([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return pad(rows, batch_first=True), mask_BT, pad(labels, batch_first=True, padding_value=IGNORED)


def answer_loss(model: nn.Module, ids_BT: Tensor, mask_BT: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy of the answer tokens, whether each row's answer is the likeliest token by token)."""
    is_answer_BT = labels_BT[:, 1:] != IGNORED
    labels_N = labels_BT[:, 1:][is_answer_BT]
    with torch.autocast("cpu", torch.bfloat16, enabled=native_precision() == "bfloat16"):
        hidden_BTD = model.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        logits_NV = model.lm_head(hidden_BTD[:, :-1][is_answer_BT])
    is_right_BT = torch.ones_like(is_answer_BT)
    is_right_BT[is_answer_BT] = logits_NV.argmax(-1) == labels_N
    return F.cross_entropy(logits_NV.float(), labels_N), is_right_BT.all(1)


@torch.no_grad()
def evaluate(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[float, float]:
    """(loss, share of exact answers) on held-out sums."""
    loss, is_exact_B = answer_loss(model, *encode(held_out_problems(LEVEL, HELD_OUT), tokenizer))
    return float(loss), float(is_exact_B.float().mean())

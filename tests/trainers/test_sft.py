"""Supervised fine-tuning on a tiny model: the steps of a plain loop, resume, adapters, what is exported and written."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.config.loading import to_yaml
from rlhf.config.model import ModelConfig
from rlhf.config.sharding import launch_environment
from rlhf.config.sources import ConfigError
from rlhf.data.examples import IGNORED
from rlhf.models.loading import load_tokenizer
from rlhf.trainers import sft
from rlhf.trainers.stage import NonFiniteLoss, Recorder, newest_whole, ordered
from rlhf.training.checkpoint import CheckpointError
from rlhf.training.optimizers import build_optimizer
from rlhf.training.schedule import learning_rate_factor
from tests.processes import ROOT, output_of, run_on_ranks, start
from tests.tiny_runs import save_tiny_model
from tests.trainers.tiny_stages import tiny_sft

OPTIMIZERS = {
    "adamw": {"type": "adamw", "lr": 1e-2, "weight_decay": 0.1},
    "frugal": {"type": "frugal", "preset": "sft", "lr": 1e-2, "update_gap": 2, "density": 0.5},
    "adabelief": {"type": "adabelief", "preset": "sft", "lr": 1e-2},
    "auon": {"type": "auon", "preset": "sft", "lr": 1e-2},
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_takes_the_steps_of_a_plain_loop(name, model_path, tmp_path):
    training = {"steps": 6, "rows_per_step": 4, "rows_per_micro_batch": 2}
    config = tiny_sft(model_path, tmp_path, optimizer=OPTIMIZERS[name], training=training)
    run = sft.run(config)

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    optimizer = build_optimizer(config.optimizer, model, dict(model.named_parameters()), config.run.seed)
    peaks = [group["lr"] for group in optimizer.param_groups]
    examples, _ = sft.load_examples(config, load_tokenizer(config.model))
    order, losses = ordered(len(examples), config), []
    for step in range(6):
        batch = [examples[index] for index in order[4 * step : 4 * step + 4]]
        sums = [
            F.cross_entropy(
                model(torch.tensor([each.token_ids])).logits[0, :-1], torch.tensor(each.labels[1:]),
                ignore_index=IGNORED, reduction="sum",
            )
            for each in batch
        ]  # fmt: skip
        loss = sum(sums) / sum(len(each.token_ids) - each.learned_from for each in batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * learning_rate_factor(step, 6, config.schedule)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert [line["loss"] for line in lines(run / "metrics.jsonl")] == pytest.approx(losses, abs=1e-3)
    for key, value in weights(run / "model").items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.slow
def test_two_ranks_train_one_model(model_path, tmp_path):
    training = {"steps": 3, "rows_per_step": 4, "rows_per_micro_batch": 2}
    for name in ("one", "two"):
        config = tiny_sft(model_path, tmp_path, name, training=training)
        (tmp_path / f"{name}.yaml").write_text(to_yaml(config), encoding="utf-8")
    # in processes of their own, both: Accelerate's settings are of the process
    output_of(start(ROOT / "recipes/sft.py", "--config", tmp_path / "one.yaml"))
    run_on_ranks(2, ROOT / "recipes/sft.py", "--config", tmp_path / "two.yaml")
    one, two = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-5)
    assert [line["num_tokens"] for line in two] == [line["num_tokens"] for line in one]
    assert (tmp_path / "two" / "model" / "model.safetensors").exists()


def test_shards_are_refused_before_anything_is_made(tmp_path, monkeypatch):
    for name, value in launch_environment("fsdp2").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"fsdp2 divides weights.*configs/accelerate/ddp\.yaml"):
        sft.run(tiny_sft("no/model", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_leaves(model_path, tmp_path, capsys):
    run = sft.run(tiny_sft(model_path, tmp_path, training={"steps": 30, "rows_per_step": 8, "rows_per_micro_batch": 8}))
    before, after = lines(run / "evaluations.jsonl")
    assert (before["step"], after["step"]) == (0, 30) and after["loss"] < before["loss"] - 1
    assert before["n"] == 8 and after["low"] <= after["accuracy"] <= after["high"]
    assert (run / "config.yaml").exists() and (run / "environment.json").exists()
    printed = capsys.readouterr().out
    assert "held out, step 30" in printed and f"model: {run / 'model'}" in printed
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer.chat_template == load_tokenizer(ModelConfig(path=model_path)).chat_template


def test_a_killed_run_goes_on_to_the_same_weights(model_path, tmp_path, monkeypatch):
    optimizer, checkpoint = OPTIMIZERS["frugal"], {"every": 2}
    straight = sft.run(tiny_sft(model_path, tmp_path, "straight", optimizer=optimizer, checkpoint=checkpoint))
    config = tiny_sft(model_path, tmp_path, "cut", optimizer=optimizer, checkpoint=checkpoint)
    on_log = Recorder.on_log

    def cut(self, args, state, control, logs, **rest):
        on_log(self, args, state, control, logs, **rest)
        if state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Recorder, "on_log", cut)
    with pytest.raises(KeyboardInterrupt):
        sft.run(config)
    monkeypatch.undo()
    checkpoints = tmp_path / "cut" / "checkpoints"
    (checkpoints / "checkpoint-5").mkdir()  # what a kill while saving leaves
    assert newest_whole(checkpoints).name == "checkpoint-4"
    with pytest.raises(CheckpointError, match=r"optimizer\.lr: 0\.01 in the checkpoint, 0\.02 now"):
        changed = tiny_sft(model_path, tmp_path, "cut", optimizer=optimizer | {"lr": 2e-2}, checkpoint=checkpoint)
        sft.run(changed)
    run = sft.run(config)
    for key, value in weights(run / "model").items():
        assert torch.equal(value, weights(straight / "model")[key]), key
    logged = [[(line["step"], line["loss"]) for line in lines(each / "metrics.jsonl")] for each in (run, straight)]
    assert logged[0] == logged[1]


def test_adapters_are_added_to_their_base(model_path, tmp_path, monkeypatch):
    exported, seen = sft.export, {}

    def watched(model, *rest, **named):
        ids = torch.tensor([[5, 6, 7, 8]])
        model.eval()
        seen["trained"] = model(ids).logits.detach()
        with model.disable_adapter():
            seen["base"] = model(ids).logits.detach()
        return exported(model, *rest, **named)

    monkeypatch.setattr(sft, "export", watched)
    model = {"path": model_path, "dtype": "float32", "lora": {"rank": 4}}
    run = sft.run(tiny_sft(model_path, tmp_path, model=model))
    assert not (run / "model" / "adapter_config.json").exists()
    logits = AutoModelForCausalLM.from_pretrained(run / "model")(torch.tensor([[5, 6, 7, 8]])).logits
    torch.testing.assert_close(logits, seen["trained"], rtol=1e-4, atol=1e-4)
    assert (logits - seen["base"]).abs().max() > 0.01


def test_a_loss_that_is_no_number_stops_the_run(model_path, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_path)
    model.model.norm.weight.data[0] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    load_tokenizer(ModelConfig(path=model_path)).save_pretrained(tmp_path / "broken")
    with pytest.raises(NonFiniteLoss, match="step 1: loss is nan"):
        sft.run(tiny_sft(str(tmp_path / "broken"), tmp_path, evaluation={"examples": 0}))
    assert not (tmp_path / "sft" / "model").exists()

"""With alpha = 0 the loss and its gradient are those of TRL's DPOTrainer on the same rows, tokenised by each."""

import json

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from rlhf.config.vpo import VPOConfig
from rlhf.data.preference_source import load_preferences
from rlhf.models.loading import load_tokenizer
from rlhf.models.plain_path import using_attention
from rlhf.trainers.vpo import ValueIncentivised
from tests.invariants.one_step import distance
from tests.invariants.vpo_update import make_vpo_learner
from tests.tiny_runs import save_tiny_model

ROWS = [
    {"prompt": "The sky is", "chosen": " blue today.", "rejected": " made of cheese, I think, or of something else."},
    {"prompt": "Two and three make", "chosen": " five.", "rejected": " six."},
    {"prompt": "A cat", "chosen": " sleeps in the sun all day long", "rejected": " is a plant"},
]
CHATS = [
    {"prompt": [{"role": "user", "content": row["prompt"]}]}
    | {name: [{"role": "assistant", "content": row[name].strip()}] for name in ("chosen", "rejected")}
    for row in ROWS
]


def config_of(model, file):
    return VPOConfig.model_validate({
        "model": {"path": model, "dtype": "float32"},
        "data": {"type": "preferences", "path": str(file)},
        "engine": {"type": "transformers"},
        "sampling": {"max_tokens": 32},
        "algorithm": {"preset": "dpo", "mode": "offline", "beta": 0.3, "reference_logps": "live"},
        "batch": {"steps": 1, "prompts_per_step": 3, "tokens_per_micro_batch": 32, "max_grad_norm": 1e9},
        "evaluation": {"prompts": 0},
    })  # fmt: skip


@pytest.fixture
def setup(tmp_path):
    """(learner, our samples, TRL's trainer) of rows, on one tiny model with one reference."""

    def make(rows):
        model, file = save_tiny_model(tmp_path / "model"), tmp_path / "pairs.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = config_of(model, file)
        learner, tokenizer = make_vpo_learner(config, tmp_path), load_tokenizer(config.model)
        source = load_preferences(config.data, tokenizer, config.sampling.max_tokens)
        samples = [sample for index in range(len(rows)) for sample in source[index]]
        arguments = DPOConfig(
            output_dir=str(tmp_path / "trl"), beta=0.3, per_device_train_batch_size=3, use_cpu=True, report_to=[],
            disable_dropout=True, gradient_checkpointing=False, bf16=False,
        )  # fmt: skip
        trainer = DPOTrainer(
            learner.policy.causal_lm, learner.reference.causal_lm, args=arguments, processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
        )  # fmt: skip
        return learner, samples, trainer

    return make


@pytest.mark.slow
def test_loss_and_gradient(setup):
    learner, samples, trainer = setup(ROWS)
    algorithm, caught = ValueIncentivised(learner.config.algorithm, 2), []
    learner.optimizer.step = lambda: caught.append(torch.cat([m.grad.flatten() for m in learner.weights.masters]))
    policy, reference = learner.policy.causal_lm, learner.reference.causal_lm
    with using_attention(policy, "sdpa"), using_attention(reference, "sdpa"):
        loss = trainer.compute_loss(policy, next(iter(trainer.get_train_dataloader())))
        loss.backward()
    gradient = torch.cat([master.grad.flatten() for master in learner.weights.masters])
    metrics = learner.update(algorithm.prepare(samples, learner), algorithm, 1)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert distance(caught[0], gradient) < 1e-5


@pytest.mark.slow
def test_messages_end_where_a_model_stops(setup):
    _, samples, trainer = setup(CHATS)
    batch = next(iter(trainer.get_train_dataloader()))
    rows = zip(batch["input_ids"], batch["completion_mask"].bool(), strict=True)
    theirs = {tuple(ids[mask].tolist()) for ids, mask in rows}
    (line_break,) = trainer.processing_class("\n", add_special_tokens=False)["input_ids"]
    # TRL learns the template's line break after the end of the turn, which no model is asked for
    assert theirs == {(*sample.completion_ids, line_break) for sample in samples}

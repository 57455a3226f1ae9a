"""The optimizers outside this framework: in transformers.Trainer, and in a plain loop with torch's scheduler."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from rlhf.optim import build_param_groups
from rlhf.optim.factories import AdaBeliefFactory, AuONFactory, FrugalFactory

STEPS, LR = 6, 3e-3
FACTORIES = [
    (AdaBeliefFactory, {"eps": 1e-16}),
    (FrugalFactory, {"density": 0.25, "update_gap": 2, "min_split_numel": 0, "min_split_dim": 0}),
    (AuONFactory, {"adjust_lr": "match_rms_adamw", "min_split_numel": 0, "min_split_dim": 0}),
]
CASES = pytest.mark.parametrize(("factory", "settings"), FACTORIES, ids=[f.__name__ for f, _ in FACTORIES])


def make_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True,
    ))  # fmt: skip


def make_rows():
    """One row again and again: batches do not depend on the Trainer's order."""
    row = torch.randint(0, 64, (12,), generator=torch.Generator().manual_seed(1)).tolist()
    return [{"input_ids": row, "labels": row}] * (2 * STEPS)


def make_trainer(factory, settings, folder, **changes):
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=2, lr_scheduler_type="linear",
        warmup_steps=2, max_grad_norm=1.0, report_to=[], logging_strategy="no", use_cpu=True, disable_tqdm=True,
        **{"save_strategy": "no", **changes},
    )  # fmt: skip
    given = {"lr": LR, "weight_decay": 0.1, **settings}
    return Trainer(make_model(), arguments, train_dataset=make_rows(), optimizer_cls_and_kwargs=(factory, given))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@CASES
def test_the_trainer_and_a_plain_loop_take_the_same_steps(factory, settings, tmp_path):
    trainer = make_trainer(factory, settings, tmp_path)
    trainer.train()

    model = make_model()
    grouping = {name: value for name, value in settings.items() if name.startswith("min_split")}
    own = {name: value for name, value in settings.items() if name not in grouping}
    groups = build_param_groups(model, optimizer=factory.method, weight_decay=0.1, **grouping)
    optimizer = factory.optimizer(groups, lr=LR, **own)
    warm_up_and_decay = LambdaLR(optimizer, lambda step: min(step / 2, max(0, (STEPS - step) / (STEPS - 2))))
    rows = torch.tensor([row["input_ids"] for row in make_rows()[:2]])
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm_up_and_decay.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    assert losses[-1] < losses[0] - 0.1
    assert {group["role"] for group in optimizer.param_groups} >= {"full"}
    for name, value in weights(trainer.model).items():
        torch.testing.assert_close(value, weights(model)[name], rtol=1e-5, atol=1e-7)


@CASES
def test_a_run_of_the_trainer_goes_on_from_its_checkpoint(factory, settings, tmp_path):
    straight = make_trainer(factory, settings, tmp_path / "straight")
    straight.train()
    make_trainer(factory, settings, tmp_path / "cut", save_strategy="steps", save_steps=3).train()
    # an odd step, so that FRUGAL's choice (every 2) is older than the checkpoint
    again = make_trainer(factory, settings, tmp_path / "cut")
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    for name, value in weights(again.model).items():
        assert torch.equal(value, weights(straight.model)[name]), name


@CASES
def test_roles_come_from_the_model(factory, settings):
    optimizer = factory()(make_model(), lr=LR, **settings)
    roles = {
        name: group["role"] for group in optimizer.param_groups for name in group["param_names"]
    }  # fmt: skip
    special = {AdaBeliefFactory: "full", FrugalFactory: "split", AuONFactory: "matrix"}[factory]
    assert roles["model.layers.0.mlp.up_proj.weight"] == special
    assert roles["model.embed_tokens.weight"] == roles["model.norm.weight"] == "full"


def test_a_setting_that_does_not_exist_is_named():
    with pytest.raises(TypeError, match="Frugal has no setting dense: it has"):
        FrugalFactory()(make_model(), dense=0.5)

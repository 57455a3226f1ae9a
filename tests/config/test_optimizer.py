"""The optimizer section: presets, types by flag, contradictions, remarks."""

import pytest

from rlhf.config.grpo import GRPOConfig
from rlhf.config.help import render_help
from rlhf.config.loading import parse_config, to_yaml
from rlhf.config.optimizer import AdaBeliefConfig, AuONConfig, FrugalConfig
from rlhf.config.rules import remarks

OWN = (AdaBeliefConfig, FrugalConfig, AuONConfig)
PRESETS = [
    (FrugalConfig, "pretrain", {"density": 0.25, "update_gap": 200, "selector": "block", "order": "descending",
                                "state_free_lr_scale": 1.0}),
    (FrugalConfig, "sft", {"density": 0.25, "update_gap": 500, "selector": "columns", "state_free_lr_scale": 0.1}),
    (FrugalConfig, "rl", {"density": 0.25, "update_gap": 50, "selector": "auto", "state_free_lr_scale": 0.25,
                          "state_dtype": "bfloat16", "lr": 1e-6}),
    (AuONConfig, "pretrain", {"lr": 0.055, "adjust_lr": "paper", "momentum": 0.95, "adamw_lr": 3e-3, "eps_norm": 1e-7}),
    (AuONConfig, "sft", {"adjust_lr": "match_rms_adamw", "adamw_lr": None, "eps_norm": 1e-7}),
    (AuONConfig, "rl", {"adjust_lr": "match_rms_adamw", "adamw_lr": None, "eps_norm": 1e-12, "lr": 1e-6}),
    (AdaBeliefConfig, "pretrain", {"lr": 5e-4, "eps": 1e-16, "rectify": True, "weight_decay": 1e-4,
                                   "max_update_rms": None}),
    (AdaBeliefConfig, "sft", {"eps": 1e-16, "rectify": False, "max_update_rms": None}),
    (AdaBeliefConfig, "rl", {"eps": 1e-19, "rectify": False, "max_update_rms": 1.0, "lr": 1e-6}),
]  # fmt: skip


@pytest.mark.parametrize(("section", "preset", "expected"), PRESETS, ids=lambda value: getattr(value, "__name__", None))
def test_a_preset_sets_what_is_not_given(section, preset, expected):
    values = section(preset=preset).model_dump()
    assert {name: values[name] for name in expected} == expected
    for name, value in expected.items():
        given = 0.125 if isinstance(value, float) else value
        assert section.model_validate({"preset": preset, name: given}).model_dump() == values | {name: given}


@pytest.mark.parametrize("section", OWN)
def test_the_defaults_are_those_of_the_preset_that_is_the_default(section):
    """Else `--help` would tell other defaults than those that a run has."""
    defaults = {name: field.default for name, field in section.model_fields.items()}
    assert section().model_dump() == defaults and section(preset="rl") == section()


@pytest.mark.parametrize("section", OWN)
@pytest.mark.parametrize("preset", ["rl", "sft", "pretrain"])
def test_a_preset_survives_yaml(section, preset, parse, written):
    config = parse("--optimizer.type", section.model_fields["type"].default, "--optimizer.preset", preset)
    assert isinstance(config.optimizer, section) and config.optimizer.preset == preset
    assert parse_config(GRPOConfig, ["--config", written(to_yaml(config))]) == config


def test_flags_choose_a_type_and_its_settings(parse, written):
    assert parse("--optimizer.type", "frugal", "--optimizer.density", "0.1").optimizer == FrugalConfig(density=0.1)
    file = written(to_yaml(parse("--optimizer.lr", "3e-6")))
    config = parse_config(GRPOConfig, ["--config", file, "--optimizer.type", "auon", "--optimizer.preset", "sft"])
    # what AdamW and AuON both have is kept
    assert config.optimizer == AuONConfig(preset="sft", lr=3e-6, betas=(0.9, 0.999))


def test_adabelief_within_frugal_has_its_own_eps():
    assert FrugalConfig(state_full_rule="adabelief").eps == 1e-19
    assert FrugalConfig(state_full_rule="adabelief", eps=1e-16).eps == 1e-16
    assert FrugalConfig(state_full_rule="lion").eps == 1e-8


def test_help_tells_what_presets_change():
    text = render_help(GRPOConfig, "optimizer")
    assert "--optimizer.update_gap  int (>= 1)  [default: 50] [preset: sft 500, pretrain 200]" in text
    assert "[default: 1.0] [preset: sft null, pretrain null]" in text
    assert text.count("--optimizer.preset") == 3


CONTRADICTIONS = [
    (["frugal", "--optimizer.param_precision", "sr", "--model.dtype", "float32"], "and model.dtype is float32",
     ["--model.dtype", "bfloat16"]),
    (["adabelief", "--optimizer.param_precision", "split16", "--model.lora.rank", "8"], "and adapters are float32",
     ["--optimizer.param_precision", "native"]),
    (["adabelief", "--optimizer.rectify", "true"], "set max_update_rms to null",
     ["--optimizer.max_update_rms", "null"]),
    (["frugal", "--optimizer.state_mode", "project", "--optimizer.selector", "chunk"], "set selector to one of",
     ["--optimizer.selector", "columns"]),
    (["frugal", "--optimizer.state_mode", "project"], "project with selector auto", ["--optimizer.selector", "block"]),
    (["adamw", "--optimizer.betas", "[0.9, 1.0]"], "a list of 2 values, each >= 0, < 1",
     ["--optimizer.betas", "[0.9, 0.95]"]),
    (["adamw", "--optimizer.density", "0.5"], "it belongs to optimizer.type frugal", ["--optimizer.type", "frugal"]),
    (["muon", "--optimizer.amsgrad", "true"], "it belongs to optimizer.type adabelief",
     ["--optimizer.type", "adabelief"]),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "said", "remedy"), CONTRADICTIONS, ids=[case[1] for case in CONTRADICTIONS])
def test_a_contradiction_is_refused_and_its_remedy_works(parse, problems, flags, said, remedy):
    found = problems("--optimizer.type", *flags)
    assert len(found) == 1 and said in found[0], found
    parse("--optimizer.type", *flags, *remedy)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch.steps", "100"], "does not pass over all weights once; set it to 25 or less"),
        (["--batch.steps", "50", "--batch.minibatches", "2", "--batch.epochs", "2"], None),
        (["--batch.steps", "100", "--optimizer.update_gap", "25"], None),
        (["--batch.steps", "100", "--optimizer.density", "1"], None),
        (["--batch.steps", "100", "--optimizer.density", "0"], None),
        (["--model.lora.rank", "16"], "are never split"),
    ],
)
def test_what_is_remarked_about_frugal(parse, flags, said):
    found = remarks(parse("--optimizer.type", "frugal", *flags))
    assert len(found) == 1 and said in found[0] if said else found == []

"""YAML, flags, unions: what arrives in the configuration, and what is said when it cannot."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlhf.config.algorithm import PRESETS, PolicyGradientConfig
from rlhf.config.data import DatasetConfig
from rlhf.config.grpo import GRPOConfig
from rlhf.config.loading import ConfigError, load_config, parse_config, to_yaml
from rlhf.config.rollouts import TransformersEngineConfig, VllmEngineConfig

BASE = "model: {path: m}\ndata: {type: arithmetic}\n"


def refuse(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(GRPOConfig, arguments)
    return caught.value.problems


def test_flags_override_the_file_in_both_spellings(written):
    file = written(BASE + "batch: {steps: 5, prompts_per_step: 16}\noptimizer: {lr: 1e-5}\n")
    config = parse_config(
        GRPOConfig, ["--config", file, "--batch.steps", "7", "--optimizer.lr=2e-6", "--batch.tokens-per-micro-batch=64"]
    )
    assert (config.batch.steps, config.batch.prompts_per_step, config.batch.tokens_per_micro_batch) == (7, 16, 64)
    assert config.optimizer.lr == 2e-6


def test_scientific_numbers_without_a_dot_are_numbers_in_the_file(written):
    assert parse_config(GRPOConfig, ["--config", written(BASE + "optimizer: {lr: 3e-5}\n")]).optimizer.lr == 3e-5


def test_a_configuration_needs_no_file(parse):
    assert parse().model.path == "some/model"


def test_values_are_read_as_yaml(parse):
    config = parse(
        "--tracking.trackers", "[wandb, tensorboard]", "--sampling.stop_token_ids", "[1,2]", "--engine.enforce_eager",
        "false", "--model.gradient_checkpointing", "--model.revision", "null", "--optimizer.betas", "[0.9, 0.95]",
        "--algorithm.entropy_coefficient", "-0.01",
    )  # fmt: skip
    assert config.tracking.trackers == ["wandb", "tensorboard"]
    assert config.sampling.stop_token_ids == [1, 2]
    assert config.engine.enforce_eager is False and config.model.gradient_checkpointing is True
    assert config.model.revision is None and config.optimizer.betas == (0.9, 0.95)
    assert config.algorithm.entropy_coefficient == -0.01


def test_a_flag_takes_the_form_its_field_wants(parse):
    config = parse("--run.name", "2026", "--model.revision", "1e6", "--tracking.trackers", "wandb")
    assert (config.run.name, config.model.revision, config.tracking.trackers) == ("2026", "1e6", ["wandb"])


def test_list_entries_are_reached_by_position(written):
    file = written(BASE + "rewards: {functions: [{type: correctness}, {type: length, target_tokens: 9}]}\n")
    config = parse_config(
        GRPOConfig, ["--config", file, "--rewards.functions.1.weight", "0.1", "--rewards.functions.2.type", "format"]
    )
    assert [f.type for f in config.rewards.functions] == ["correctness", "length", "format"]
    assert config.rewards.functions[1].weight == 0.1 and config.rewards.functions[1].target_tokens == 9


def test_positions_of_a_list_that_is_not_given_are_those_of_its_default(parse):
    (function,) = parse("--rewards.functions.0.weight", "2").rewards.functions
    assert (function.type, function.weight) == ("correctness", 2)


def test_a_changed_type_keeps_common_keys_and_drops_those_of_the_old_type(written):
    file = written(BASE + "engine: {type: vllm, dtype: float32, max_num_seqs: 7, enforce_eager: false}\n")
    config = parse_config(GRPOConfig, ["--config", file, "--engine.type", "transformers"])
    assert config.engine == TransformersEngineConfig(dtype="float32")


def test_a_changed_type_works_where_the_file_leaves_the_default_type_out(written):
    file = written(BASE + "engine: {max_num_seqs: 7}\n")
    assert parse_config(GRPOConfig, ["--config", file]).engine == VllmEngineConfig(max_num_seqs=7)
    config = parse_config(GRPOConfig, ["--config", file, "--engine.type", "transformers", "--engine.max_rows", "3"])
    assert config.engine == TransformersEngineConfig(max_rows=3)


def test_a_key_of_the_old_type_given_by_flag_is_an_error(written):
    file = written(BASE + "engine: {type: vllm, max_num_seqs: 7}\n")
    (problem,) = refuse("--config", file, "--engine.type", "transformers", "--engine.max_num_seqs", "3")
    assert problem.startswith("--engine.max_num_seqs: unknown key") and "engine (transformers) has:" in problem


def test_a_typo_in_the_file_survives_a_change_of_type(written):
    file = written(BASE + "engine: {type: vllm, max_rowz: 7}\n")
    (problem,) = refuse("--config", file, "--engine.type", "transformers")
    assert f"engine.max_rowz ({file}:3): unknown key; did you mean engine.max_rows?" in problem


def test_an_optional_section_appears_with_its_first_flag_and_goes_with_null(written, parse):
    assert parse("--model.lora.rank", "4").model.lora.rank == 4
    assert parse("--model.lora", "{}").model.lora.rank == 16
    file = written("model: {path: m, lora: {rank: 4}}\ndata: {type: arithmetic}\n")
    assert parse_config(GRPOConfig, ["--config", file, "--model.lora", "null"]).model.lora is None


def test_an_empty_section_means_its_defaults(written):
    assert parse_config(GRPOConfig, ["--config", written(BASE + "engine:\nbatch:\n")]).batch.steps == 100


def test_all_problems_come_at_once_with_their_places(written):
    file = written("model: {path: m}\ndata:\n  type: arithmetic\n  levle: 2\nbatch:\n  steps: 0\n")
    problems = refuse("--config", file, "--sampling.temprature", "0.5", "--optimizer.lr", "fast")
    assert [problem.split(" ")[0] for problem in problems] == [
        "data.levle", "--sampling.temprature:", "batch.steps", "--optimizer.lr",
    ]  # fmt: skip
    assert f"({file}:4): unknown key; did you mean data.level?" in problems[0]
    assert "sampling has: samples_per_prompt, max_tokens, temperature" in problems[1]
    assert problems[2] == f"batch.steps ({file}:6) = 0: must be an integer >= 1"
    assert problems[3] == "--optimizer.lr = 'fast': must be a number > 0"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--lr", "1"], "--lr: unknown key; did you mean optimizer.lr?"),
        (["--sampling.prompts_per_step", "1"], "did you mean batch.prompts_per_step?"),
        (["--engine.type", "vlm"], "'vlm': must be one of transformers, vllm, server; did you mean vllm?"),
        (["--algorithm.preset", "ppo"], "must be one of grpo, dr_grpo, dapo, gspo, cispo, rloo, loo_ppo, reinforce"),
        (["--batch.steps"], "--batch.steps = true: must be an integer >= 1"),
        (["--batch.steps.deep", "1"], "batch.steps"),
        (["--rewards.functions.4.weight", "1"], "is a list of 1; use its positions 0 to 1"),
        (["--rewards.functions", "[]"], "must be a list of"),
        (["--rewards.functions", "[{weight: 2}]"], "rewards.functions.0 needs a `type`: one of correctness"),
        (["--rewards.functions", "[{type: soft_overlong, max_tokens: 9}]"], "functions.0.buffer_tokens is required"),
        (["--optimizer.lr", ".nan"], "--optimizer.lr = nan: must be a number > 0"),
        (["--algorithm.entropy_coefficient", ".inf"], "must be a number"),
        (["stray"], "unexpected argument 'stray'"),
        (["--run.name", "a b"], "matching"),
        (["--run.name", "[a"], "--run.name [a: not a YAML value"),
        (["--config", "nowhere/run.yaml"], "--config nowhere/run.yaml: no such file"),
    ],
)
def test_what_is_said(problems, flags, expected):
    found = problems(*flags)
    assert any(expected in problem for problem in found), found
    assert all("\n" not in problem and "pydantic" not in problem for problem in found)


def test_required_sections_are_named_with_the_flags_that_give_them():
    assert refuse() == [
        "model is required: give --model.path ...",
        "data is required: give --data.type arithmetic|countdown|number_guessing|dataset",
    ]
    assert refuse("--model.path", "m", "--data.max_prompt_tokens", "9") == [
        "--data.max_prompt_tokens needs a `type`: one of arithmetic, countdown, number_guessing, dataset "
        "(--data.type ...)"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {path: m}\nmodel: {path: n}\n", ":2: not valid YAML (the key 'model' is also on line 1: remove one)"),
        ("model: [unclosed\n", "not valid YAML"),
        ("- a\n- b\n", "must hold `section:` blocks, not list"),
        ("model: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("model: {path: m}\ndata: {type: arithmetic}\nrun: {name: 12}\n", ":3) = 12: must be text matching"),
    ],
)
def test_bad_files(written, text, expected):
    assert any(expected in problem for problem in refuse("--config", written(text)))


def test_errors_leave_with_status_2_and_no_traceback(capsys):
    with pytest.raises(SystemExit) as caught:
        load_config(GRPOConfig, ["--batch.stepz", "3"])
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "Traceback" not in shown.err
    assert shown.err.startswith("The configuration has 3 problems:\n  - --batch.stepz: unknown key")


def test_only_the_first_rank_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        load_config(GRPOConfig, ["--batch.stepz", "3"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_survive_a_round_trip(parse, written, preset):
    config = parse("--algorithm.preset", preset)
    for name, value in PRESETS[preset].items():
        if not isinstance(value, dict):
            assert getattr(config.algorithm, name) == value
    assert parse_config(GRPOConfig, ["--config", written(to_yaml(config))]) == config


def test_a_preset_fills_only_what_is_not_given_also_inside_sections(parse, written):
    algorithm = PolicyGradientConfig.model_validate({"preset": "dapo", "dynamic_sampling": {}, "clip_high": 0.3})
    assert algorithm.dynamic_sampling.max_refills == 3 and (algorithm.clip_low, algorithm.clip_high) == (0.2, 0.3)
    config = parse("--algorithm.preset", "dapo", "--algorithm.dynamic_sampling.max_refills", "1")
    assert config.algorithm.dynamic_sampling.max_refills == 1 and config.algorithm.mask_truncated
    assert parse_config(GRPOConfig, ["--config", written(to_yaml(config))]) == config


def test_a_file_can_be_changed_again_after_it_was_resolved(parse, written):
    file = written(to_yaml(parse("--data.level", "3")))
    config = parse_config(GRPOConfig, ["--config", file, "--data.type", "dataset", "--data.path", "a.jsonl",
                                       "--data.answer_field", "a", "--evaluation.prompts", "0"])  # fmt: skip
    assert config.data == DatasetConfig(path="a.jsonl", answer_field="a")


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    lr=st.floats(1e-12, 10, exclude_min=True),
    trackers=st.lists(st.sampled_from(["tensorboard", "wandb", "trackio"])),
)
@example(text="\x85", lr=1.0, trackers=[])
@example(text="a\u2028b \u2029 c\x85", lr=1.0, trackers=[])
def test_any_text_and_number_survives_a_round_trip(tmp_path_factory, text, lr, trackers):
    config = GRPOConfig.model_validate(
        {
            "model": {"path": text, "revision": text},
            "data": {"type": "arithmetic", "system_prompt": text},
            "optimizer": {"type": "adamw", "lr": lr},
            "tracking": {"trackers": trackers, "project": text},
        }
    )
    file = tmp_path_factory.mktemp("round") / "c.yaml"
    file.write_bytes(to_yaml(config).encode())
    assert parse_config(GRPOConfig, ["--config", str(file)]) == config


@pytest.mark.parametrize("text", ["1e-6", "no", "2026-11-24", "1_000", "0x1f", "12:30:00", "~", "null", ".5", "<<", ""])
def test_text_that_looks_like_something_else_stays_text(written, parse, text):
    config = GRPOConfig.model_validate({"model": {"path": text}, "data": {"type": "arithmetic"}})
    assert parse_config(GRPOConfig, ["--config", written(to_yaml(config))]).model.path == text

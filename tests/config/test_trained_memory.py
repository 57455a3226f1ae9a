"""The plan of a model that is trained in shards: closed forms, by method and number of ranks."""

import pytest

from rlhf.config.division import METHODS, Division, division_from_environment, division_from_text
from rlhf.config.memory_plan import learner_plan, memory_plan
from rlhf.config.model_shapes import PUBLISHED, ModelShape
from rlhf.config.sources import ConfigError
from rlhf.config.trained_memory import PERSISTENT, REDUCE_BUCKET

SHAPE = PUBLISHED["Qwen/Qwen2.5-0.5B-Instruct"]
P = SHAPE.parameters
ROOT = 151_936 * 896 + 896
"""Tied table and last norm."""
LARGE = ModelShape(8192, 80, 64, 8, 128, 29568, 152064, is_tied=False, has_qkv_bias=True)
STATES = ("policy weights", "adapters", "float32 masters", "gradients", "optimizer state")
BIASES_AND_NORMS = 24 * (2 * 896 + 896 + 2 * 128) + 896


def items(config, division, shape=SHAPE, place="device"):
    return {part.name: part.bytes for part in memory_plan(config, shape, division).items if part.place == place}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("flags", [(), ("--model.lora.rank", "8"), ("--model.dtype", "float32")])
def test_one_rank_is_one_process(parse, method, flags):
    config = parse(*flags)
    assert memory_plan(config, SHAPE, Division(method, 1)).items == memory_plan(config, SHAPE).items


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # weights, masters, gradients, state: bytes a parameter on each of 8 ranks
        ("ddp", (2, 4, 4, 8)),
        ("fsdp2", (4 / 8, 0, 4 / 8, 1)),
        ("zero1", (2, 4 / 8, 4, 1)),
        ("zero2", (2, 4 / 8, 4 / 8, 1)),
        ("zero3", (2 / 8, 4 / 8, 4 / 8, 1)),
    ],
)
def test_what_each_method_divides(parse, method, expected):
    found = items(parse(), Division(method, 8))
    names = ("policy weights", "float32 masters", "gradients", "optimizer state")
    for name, bytes_each in zip(names, expected, strict=True):
        # padding: at most 8 elements for each of 290 tensors
        assert found.get(name, 0) == pytest.approx(bytes_each * P, abs=8 * 8 * 290), name


@pytest.mark.parametrize("ranks", [2, 8, 64, 1000])
@pytest.mark.parametrize("optimizer", ["adamw", "adabelief", "auon"])
def test_stage_3_holds_one_nth_up_to_padding(parse, ranks, optimizer):
    config = parse("--optimizer.type", optimizer)
    whole = sum(items(config, Division()).get(name, 0) for name in STATES)
    found = items(config, Division("zero3", ranks))
    part = sum(found.get(name, 0) for name in STATES)
    # a tensor's last stretch is filled up: less than one element for each rank and tensor
    assert 0 <= part - whole / ranks < 290 * (2 + 4 + 4 + 8) + len(STATES)


def test_offloading_moves_masters_gradients_and_state_to_the_host(parse):
    config = parse()
    near, away = items(config, Division("zero3", 8)), Division("zero3_offload", 8)
    host = items(config, away, place="host")
    for name in ("float32 masters", "gradients", "optimizer state"):
        assert name not in items(config, away) and host[name] == near[name]
    assert host["gradients for the step"] == near["gradients"]
    plan = memory_plan(config, SHAPE, away)
    assert plan.host_bytes == sum(host.values()) and plan.total_bytes == sum(items(config, away).values())
    assert "total in host memory" in plan.render()
    assert memory_plan(config, SHAPE, Division("zero3", 8)).host_bytes == 0


def test_float32_weights_have_masters_under_zero_only(parse):
    config = parse("--model.dtype", "float32")
    for method, masters in (("ddp", 0), ("fsdp2", 0), ("zero1", 4), ("zero2", 4), ("zero3", 4)):
        found = items(config, Division(method, 8))
        assert found.get("float32 masters", 0) == pytest.approx(masters * P / 8, abs=8 * 4 * 290), method


def test_a_step_copies_the_largest_group_of_the_optimizer(parse):
    linears = 24 * sum(inputs * outputs for inputs, outputs in SHAPE.linears.values())
    for optimizer, elements in (("adamw", P), ("auon", linears)):
        found = items(parse("--optimizer.type", optimizer), Division("zero3", 8))
        assert found["gradients flattened for the step"] == pytest.approx(4 * elements / 8, abs=4 * 290), optimizer


def test_deepspeed_s_bucket_is_no_larger_than_what_is_trained(parse):
    config, adapters = parse(), parse("--model.lora.rank", "8")
    for shape, elements in ((SHAPE, P), (LARGE, REDUCE_BUCKET)):
        assert items(config, Division("zero3", 8), shape)["reduce bucket"] == 4 * elements
        assert items(config, Division("zero2", 8), shape)["reduce bucket"] == 2 * elements
    assert items(adapters, Division("zero2", 8), LARGE)["reduce bucket"] < 4 * REDUCE_BUCKET / 8
    # a table larger than the bucket is reduced alone
    assert items(config, Division("zero3", 8), LARGE)["gradients being reduced"] == 4 * 152_064 * 8192
    assert items(config, Division("zero3", 8))["gradients being reduced"] == 4 * P


def test_stage_3_keeps_a_small_model_gathered_and_its_vectors_whole(parse):
    found = items(parse(), Division("zero3", 8))
    assert 896 * 128 > PERSISTENT > 4864  # key and value maps are divided
    assert found["small weights, whole"] == 2 * BIASES_AND_NORMS
    assert found["gathered weights"] + found["small weights, whole"] == 2 * P
    large = items(parse(), Division("zero3", 8), LARGE)["gathered weights"]
    assert large < 2 * (1e9 + LARGE.block_parameters + 152_064 * 8192) < 2 * LARGE.parameters / 10


def test_fsdp2_gathers_tables_and_two_blocks_or_everything(parse):
    found = items(parse(), Division("fsdp2", 8))
    assert found["gathered weights"] == 2 * (ROOT + 2 * SHAPE.block_parameters)
    assert found["gradients being reduced"] == (2 + 4) * ROOT
    assert items(parse(), Division("fsdp2", 8, keeps_gathered=True))["gathered weights"] == 2 * P
    host = items(parse(), Division("fsdp2", 8, is_on_host=True), place="host")
    assert set(host) == {"policy weights", "gradients", "optimizer state"}


def test_rows_of_adapters_do_not_divide_among_more_ranks_than_there_are(parse):
    config, one_row = parse("--model.lora.rank", "8"), 0
    for inputs, outputs in SHAPE.linears.values():
        one_row += 24 * (inputs + 8 * -(-outputs // 64))
    assert items(config, Division("fsdp2", 64))["adapters"] == 4 * one_row
    # flattened they do, but for what is small and stays whole
    found = items(config, Division("zero3", 64))
    assert found["adapters"] < 4 * one_row / 2 and found["small weights, whole"] > 2 * BIASES_AND_NORMS


def test_the_reference_is_divided_where_the_policy_is(parse):
    config = parse("--algorithm.kl.coefficient", "0.1")
    for method, share in (("ddp", 1), ("zero2", 1), ("fsdp2", 8), ("zero3", 8)):
        found = items(config, Division(method, 8))["reference policy"]
        assert found == pytest.approx(2 * P / share, rel=1e-3), method


def test_zero_has_the_model_whole_at_the_start(parse):
    config = parse("--model.gradient_checkpointing", "true")
    plans = {method: learner_plan(config, LARGE, Division(method, 64)) for method in METHODS}
    whole = 2 * LARGE.parameters
    assert plans["zero3"].peak_bytes == whole > plans["zero3"].total_bytes
    assert plans["fsdp2"].peak_bytes == plans["fsdp2"].total_bytes
    loaded = {method: {part.name: part.bytes for part in plan.at_start} for method, plan in plans.items()}
    assert loaded["fsdp2"] == {"the model as it is loaded": 2 * whole}  # in float32, as the shards are
    assert loaded["zero2"] == {"the model as it is loaded": whole, "the model as it is divided": 2 * whole}


def test_a_critic_of_its_own_is_divided_as_the_policy_is():
    from rlhf.config.loading import parse_config
    from rlhf.config.ppo import PPOConfig

    arguments = ["--model.path", "Qwen/Qwen2.5-0.5B-Instruct", "--data.type", "arithmetic"]
    config = parse_config(PPOConfig, [*arguments, "--algorithm.critic.trunk", "separate"])
    found = items(config, None)
    of_policy = sum(found[name] for name in ("policy weights", "float32 masters", "gradients",
                                             "gradients of a micro-batch", "optimizer state"))  # fmt: skip
    assert found["critic"] == of_policy == 20 * P
    # what does not divide: gathered weights and gradients on their way
    assert items(config, Division("fsdp2", 8))["critic"] < 20 * P / 8 + 2 * P


def test_divisions_are_read_from_text_and_launch():
    assert division_from_text("zero3:8") == Division("zero3", 8) and division_from_text("ddp:1") == Division()
    for text, said in (
        ("zero4:8", "no method 'zero4'; plan for one of ddp, fsdp2, zero1"),
        ("zero3:", "how many ranks"),
        ("zero3:0", "how many ranks"),
        ("zero3:1", "2 or more, or for ddp:1"),
    ):
        with pytest.raises(ConfigError, match=said):
            division_from_text(text)
    fsdp = {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "16"}
    assert division_from_environment(fsdp) == Division("fsdp2", 16)
    others = fsdp | {"FSDP_RESHARD_AFTER_FORWARD": "false", "FSDP_OFFLOAD_PARAMS": "true"}
    assert division_from_environment(others) == Division("fsdp2", 16, keeps_gathered=True, is_on_host=True)
    assert str(division_from_environment(others)) == "16 ranks, fsdp2 (no resharding, on the host)"
    assert str(division_from_environment({})) == "1 rank"

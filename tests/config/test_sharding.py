"""What a launch asks for, and what is refused under it."""

import pytest

from rlhf.config.grpo import GRPOConfig
from rlhf.config.optimistic_actor_critic import OptimisticActorCriticConfig
from rlhf.config.sharding import launch_environment, sharding_from_environment, sharding_problems

MODEL = {"model": {"path": "embedded:smollm2-135m-instruct"}, "data": {"type": "arithmetic"}}


@pytest.mark.parametrize(
    ("environment", "sharding"),
    [
        ({}, "ddp"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "zero1"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "zero2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
        (
            {
                "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
            },
            "zero3_offload",
        ),
    ],
)  # fmt: skip
def test_the_launchers_variables_name_the_method(environment, sharding):
    assert sharding_from_environment(environment) == sharding
    assert sharding_from_environment(launch_environment(sharding)) == sharding


@pytest.mark.parametrize("optimizer", ["muon", "adamw_8bit"])
def test_optimizers_that_need_whole_tensors_are_refused_in_shards(optimizer):
    config = GRPOConfig.model_validate(MODEL | {"optimizer": {"type": optimizer, "lr": 1e-3}})
    assert sharding_problems(config, "ddp") == []
    (problem,) = sharding_problems(config, "fsdp2")
    assert optimizer in problem and "auon" in problem


def test_a_critic_that_reads_the_policy_is_refused_in_shards():
    config = OptimisticActorCriticConfig.model_validate(MODEL | {"algorithm": {"preset": "douhua"}})
    (problem,) = sharding_problems(config, "zero3")
    assert "douhua" in problem and "ddp.yaml" in problem
    assert sharding_problems(OptimisticActorCriticConfig.model_validate(MODEL), "zero3") == []

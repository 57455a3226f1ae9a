"""Every trainer and optimizer, full fine-tuning and LoRA, with the model in shards: the trajectory of one process."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config.sharding import launch_environment
from tests.invariants.sharded_runs import LOW_PRECISION, MATRIX, weights_after
from tests.processes import run_on_ranks
from tests.tiny_runs import save_tiny_model

SCRIPT, CHECKPOINTS, RESTART = (
    Path(__file__).with_name(f"{name}_on_ranks.py") for name in ("matrix", "checkpoints", "restart")
)
PER_RANK = ("optimistic", "loop")
"""Their critics keep and draw episodes by rank, so their runs are compared with those of whole models on two ranks."""
IN_SHORT = {
    "fsdp2": ("grpo auon full", "capo adamw full", "grpo adamw lora"),
    "zero3": ("grpo frugal full", "ppo adamw full", "vpo adamw lora"),
}
MOST_SIGNS_TURNED = 500
"""FRUGAL moves most weights by the sign of their gradient: at most one weight in this many is left out."""
BY_NAME = {run.name: run for run in MATRIX}


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    """With matrices that are large enough for optimizers that treat those apart."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "wide", hidden_size=64, intermediate_size=1024)


@pytest.fixture(scope="module")
def expected(wide_model, tmp_path_factory):
    """The weights after the steps on one process, by run; on two with the whole model where that is another run."""
    folder, found = tmp_path_factory.mktemp("expected"), {}

    def of(name: str) -> dict[str, torch.Tensor]:
        if name not in found and BY_NAME[name].trainer in PER_RANK:
            names = [run.name for run in MATRIX if run.trainer in PER_RANK]
            found.update(on_ranks("ddp", wide_model, folder, names))
        elif name not in found:
            found[name] = weights_after(BY_NAME[name], wide_model, folder)
        return found[name]

    return of


def on_ranks(sharding: str, model: str, folder: Path, names: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    out = folder / f"{sharding}.safetensors"
    run_on_ranks(2, SCRIPT, model, folder, out, *names, timeout_s=1500, **launch_environment(sharding))
    result: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(out).items():
        run, _, name = key.partition("/")
        result.setdefault(run, {})[name] = tensor
    return result


def check(sharding: str, model: str, folder: Path, names: list[str], expected) -> None:
    for run, weights in on_ranks(sharding, model, folder, names).items():
        for name, wanted in expected(run).items():
            gap = (weights[name] - wanted).flatten()
            if BY_NAME[run].optimizer == "frugal":
                # the sign of a gradient that is nothing but rounding is no one's promise
                gap = gap[gap.abs().argsort()[: len(gap) - len(gap) // MOST_SIGNS_TURNED]]
            distance = float(gap.norm() / wanted.norm())
            assert distance < 1e-5, f"{run} under {sharding}: {name} differs by {distance:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("sharding", IN_SHORT)
def test_three_steps_in_shards_are_those_of_one_process(sharding, wide_model, tmp_path, expected):
    check(sharding, wide_model, tmp_path, list(IN_SHORT[sharding]), expected)


@pytest.mark.slow
def test_a_policy_that_is_set_back_forgets_what_its_layers_have_gathered(wide_model, tmp_path):
    environment = launch_environment("fsdp2") | {"FSDP_RESHARD_AFTER_FORWARD": "false"}
    run_on_ranks(2, RESTART, wide_model, tmp_path, timeout_s=300, **environment)


@pytest.mark.slow
@pytest.mark.matrix
def test_stage_1_with_bfloat16_weights_learns_as_stage_2_does(wide_model, tmp_path):
    """DeepSpeed has another optimizer for it, with the whole gradient in float32 on every rank."""
    (run,) = LOW_PRECISION
    one, two = (on_ranks(sharding, wide_model, tmp_path, [run.name])[run.name] for sharding in ("zero1", "zero2"))
    for name, wanted in two.items():
        assert wanted.dtype == torch.bfloat16
        distance = float((one[name].float() - wanted.float()).norm() / wanted.float().norm())
        assert distance < 1e-3, f"{name} differs by {distance:.1e}"


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("sharding", ["fsdp2", "zero1", "zero2", "zero3", "zero3_offload"])
def test_all_of_the_matrix(sharding, wide_model, tmp_path, expected):
    check(sharding, wide_model, tmp_path, list(BY_NAME), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sharding", ["fsdp2", *(pytest.param(s, marks=pytest.mark.matrix) for s in ("zero2", "zero3"))]
)
def test_checkpoints_in_shards_go_on_to_the_bit_and_on_other_ranks(sharding, wide_model, tmp_path):
    for ranks, task in ((2, "write"), (3, "other_ranks")):
        run_on_ranks(ranks, CHECKPOINTS, wide_model, tmp_path, task, timeout_s=900, **launch_environment(sharding))


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize(("before", "after"), [("zero3", "fsdp2"), ("fsdp2", "zero2")])
def test_checkpoints_in_shards_go_on_in_shards_of_another_method(before, after, wide_model, tmp_path):
    for sharding, task in ((before, "write"), (after, "other_method")):
        run_on_ranks(2, CHECKPOINTS, wide_model, tmp_path, task, timeout_s=900, **launch_environment(sharding))

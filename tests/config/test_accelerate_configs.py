"""The shipped files for `accelerate launch`: the launcher takes them, and they ask for the method in their name."""

import argparse
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from rlhf.config.sharding import sharding_from_environment

FOLDER = Path(__file__).parents[2] / "configs" / "accelerate"
METHODS = {
    "ddp": "ddp", "fsdp2": "fsdp2", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3",
    "zero3_offload": "zero3_offload", "multi_node": "fsdp2",
}  # fmt: skip


def load_config(name: str):
    return load_config_from_file(str(FOLDER / f"{name}.yaml"))


def launch_environment(name: str) -> dict[str, str]:
    """The variables that the launcher would give to the processes of a machine of GPUs."""
    from accelerate.utils import launch

    arguments = [
        "--config_file", str(FOLDER / f"{name}.yaml"), "--main_process_ip", "127.0.0.1", "--main_process_port", "1",
        "recipe.py",
    ]  # fmt: skip
    checked: argparse.Namespace = _validate_launch_command(launch_command_parser().parse_args(arguments))[0]
    if checked.use_deepspeed:
        # as the launcher's own command fills it in
        checked.deepspeed_fields_from_accelerate_config = ",".join(load_config(name).deepspeed_config)
        return launch.prepare_deepspeed_cmd_env(checked)[1]
    return launch.prepare_multi_gpu_env(checked)


def test_all_files_are_known_here():
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_launcher_s_loader_takes_a_file(name):
    config = load_config(name)
    assert config.mixed_precision == "bf16" and config.use_cpu is False
    assert (config.num_machines, config.num_processes) == ((2, 16) if name == "multi_node" else (1, 8))
    if METHODS[name].startswith("zero"):
        assert config.deepspeed_config["zero3_init_flag"] is False
        assert config.deepspeed_config["gradient_accumulation_steps"] == 1
    if METHODS[name] == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2 and config.fsdp_config["fsdp_reshard_after_forward"] is True


@pytest.mark.parametrize(("name", "method"), METHODS.items())
def test_a_file_asks_for_the_method_in_its_name(name, method):
    environment = launch_environment(name)
    assert sharding_from_environment(environment) == method
    if method == "fsdp2":
        assert environment["FSDP_VERSION"] == "2" and environment["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    if method.startswith("zero"):
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"

import json
import platform
import sys

import torch

from rlhf.training.environment import describe_environment, hide_secrets


def test_no_secret_is_written(monkeypatch):
    secrets = ("HF_TOKEN", "WANDB_API_KEY", "OMP_API_KEY", "NCCL_SECRET", "SOMETHING_NEW")
    for name in secrets:
        monkeypatch.setenv(name, f"planted {name.lower()}")
    monkeypatch.setattr(sys, "argv", ["grpo.py", "--hub-token", "planted5", "--api_key=planted6", "--lr", "1e-6"])
    text = json.dumps(describe_environment())
    assert "planted" not in text
    assert not any(name in text for name in secrets)
    assert '"--hub-token", "***", "--api_key=***", "--lr", "1e-6"' in text


def test_it_says_what_the_run_ran_on(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    description = describe_environment()
    assert description["python"] == platform.python_version()
    assert description["packages"]["torch"] == torch.__version__
    assert description["variables"]["OMP_NUM_THREADS"] == "3"
    assert description["variables"]["HF_HUB_OFFLINE"] == "1"
    assert description["memory_bytes"] > 2**28
    assert len(description["gpus"]) == torch.cuda.device_count()
    git = description["git"]
    assert git is None or (len(git["commit"]) == 40 and isinstance(git["dirty"], bool))


def test_a_flag_that_sounds_secret_hides_only_its_own_value():
    assert hide_secrets(["--use-token", "--steps", "3"]) == ["--use-token", "--steps", "3"]
    # A token budget is not a secret, but hiding it is the safe error.
    assert hide_secrets(["--max-tokens=24"]) == ["--max-tokens=***"]

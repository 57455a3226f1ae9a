"""From the optimizer section to an optimizer; every type trains through a whole run and resumes to the bit."""

import hashlib
import importlib.util
import shutil

import pytest
import torch
from torch import nn

from rlhf.config.optimizer import (
    AdaBeliefConfig,
    AdamW8bitConfig,
    AdamWConfig,
    AuONConfig,
    FrugalConfig,
    MuonConfig,
)
from rlhf.models.loading import load_policy
from rlhf.optim import AdaBelief, AuON, Frugal
from rlhf.optim.muon import MatrixMomentum
from rlhf.trainers.run import run
from rlhf.training.checkpoint import list_checkpoints
from rlhf.training.optimizers import build_optimizer, keeps_master_copies
from tests.tiny_runs import save_tiny_model, tiny_config

HAS_8BIT = any(map(importlib.util.find_spec, ("torchao", "bitsandbytes")))
# of the second step, when the state-full part is another
FRUGAL = {"type": "frugal", "lr": 1e-3, "update_gap": 1}
RUNS = [
    {"type": "adamw", "lr": 1e-3},
    {"type": "muon", "lr": 1e-3},
    {"type": "adabelief", "lr": 1e-3},
    {"type": "adabelief", "lr": 1e-3, "preset": "pretrain", "state_dtype": "8bit", "param_precision": "split16"},
    {"type": "auon", "lr": 1e-3},
    {"type": "auon", "lr": 1e-3, "ns_steps": 1, "state_dtype": "bfloat16", "param_precision": "sr"},
    FRUGAL,
    FRUGAL | {"selector": "chunk", "state_dtype": "8bit", "param_precision": "split8"},
    FRUGAL | {"selector": "columns", "state_mode": "project", "state_full_rule": "adabelief", "state_dtype": "float32"},
    FRUGAL | {"selector": "svd", "param_precision": "split16"},
    FRUGAL | {"selector": "randk", "state_full_rule": "lion", "impl": "loop"},
    FRUGAL | {"density": 0.0},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Its MLPs are large enough for the rules of matrices, 64 x 1024."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", hidden_size=64, intermediate_size=1024)


def name(optimizer):
    return "-".join(str(value) for key, value in optimizer.items() if key not in ("lr", "update_gap"))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", RUNS, ids=name)
def test_a_run_trains_and_resumes_to_the_bit(model, optimizer, tmp_path):
    dtype = "bfloat16" if optimizer.get("param_precision", "native") != "native" else "float32"
    config = tiny_config(
        model, run={"folder": str(tmp_path), "name": "run"}, model={"path": model, "dtype": dtype}, optimizer=optimizer,
        batch={"steps": 2, "prompts_per_step": 4, "tokens_per_micro_batch": 128},
    )  # fmt: skip
    folder = run(config)
    first, second = list_checkpoints(folder / "checkpoints")
    straight = [digest(checkpoint) for checkpoint in (first, second)]
    assert straight[0][0] != straight[1][0], "a step that changes nothing proves nothing"
    shutil.rmtree(second)
    assert run(config) == folder
    assert [digest(checkpoint) for checkpoint in (first, second)] == straight


def digest(checkpoint):
    """Of the weights, and of the optimizer's tensors."""
    weights = hashlib.sha256((checkpoint / "weights.safetensors").read_bytes()).hexdigest()
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    states = [state for part in saved.get("parts", [saved]) for state in part["state"].values()]
    assert states
    tensors = [(key, value) for state in states for key, value in state.items() if isinstance(value, torch.Tensor)]
    bits = [(key, str(value.dtype), value.contiguous().flatten().view(torch.uint8)) for key, value in tensors]
    return weights, hashlib.sha256(b"".join(f"{k}{d}".encode() + b.numpy().tobytes() for k, d, b in bits)).hexdigest()


@pytest.mark.skipif(HAS_8BIT, reason="a library for 8-bit AdamW is installed")
def test_adamw_8bit_without_a_library_says_what_to_do():
    with pytest.raises(ModuleNotFoundError, match="needs torchao or bitsandbytes: pip install torchao, or use type"):
        build_optimizer(AdamW8bitConfig(), nn.Linear(2, 2), dict(nn.Linear(2, 2).named_parameters()))
    with pytest.raises(ModuleNotFoundError, match="adamw_8bit needs bitsandbytes: "):
        build_optimizer(
            AdamW8bitConfig(library="bitsandbytes"), nn.Linear(2, 2), dict(nn.Linear(2, 2).named_parameters())
        )


@pytest.mark.skipif(not HAS_8BIT, reason="neither torchao nor bitsandbytes is installed")
def test_adamw_8bit_takes_steps():
    layer = nn.Linear(128, 128)
    optimizer = build_optimizer(AdamW8bitConfig(lr=1e-3), layer, dict(layer.named_parameters()))
    layer(torch.ones(1, 128)).sum().backward()
    before = layer.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("config", "cls", "roles"),
    [
        (AdamWConfig(), torch.optim.AdamW, {None}),
        (AdaBeliefConfig(), AdaBelief, {"full"}),
        (FrugalConfig(), Frugal, {"full", "split"}),
        (AuONConfig(), AuON, {"full", "matrix"}),
        (MuonConfig(), MatrixMomentum, {"full", "matrix"}),
    ],
    ids=lambda value: getattr(value, "type", None),
)
def test_a_section_becomes_an_optimizer_with_its_settings(model, config, cls, roles):
    config = config.model_copy(update={"weight_decay": 0.1})
    policy = load_policy(tiny_config(model).model)
    optimizer = build_optimizer(config, policy, dict(policy.named_parameters()), seed=7)
    assert type(optimizer) is cls and {group.get("role") for group in optimizer.param_groups} == roles
    decayed = {p.ndim > 1: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decayed == {True: 0.1, False: 0.0}
    known = {"type", "preset", "weight_decay", "adamw_lr"}
    for group in optimizer.param_groups:
        for key, value in config.model_dump(exclude=known).items():
            # torch's parts of Muon have settings of their own
            assert key not in group or group[key] == value, key
        assert group.get("seed", 7) == 7 and not group.get("skip_nonfinite", False)


def test_auon_s_rest_has_its_own_learning_rate(model):
    policy = load_policy(tiny_config(model).model)
    optimizer = build_optimizer(AuONConfig(lr=0.05, adamw_lr=3e-3), policy, dict(policy.named_parameters()))
    assert {group["role"]: group["lr"] for group in optimizer.param_groups} == {"matrix": 0.05, "full": 3e-3}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AdamWConfig(), True),
        (MuonConfig(), True),
        (FrugalConfig(), True),
        (FrugalConfig(param_precision="sr"), False),
        (AuONConfig(param_precision="split16"), False),
        (AdaBeliefConfig(param_precision="split8"), False),
    ],
    ids=str,
)
def test_who_keeps_master_copies(config, expected):
    assert keeps_master_copies(config) is expected

"""Optimizers under DDP, FSDP2 and DeepSpeed ZeRO on two real processes: the steps of one process, and exact resume."""

from pathlib import Path

import pytest
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from rlhf.optim import AdaBelief, AuON, Frugal
from rlhf.optim.sharded_state import allocate_saved_state
from tests.optim.given_gradients import CASES, SAVED_AFTER, STEPS, GivenModel, assert_same, step_whole, trajectory
from tests.processes import run_on_two_ranks


def test_no_class_is_taken_for_deepspeeds_own():
    """DeepSpeed looks for "muon" in an optimizer's name, and then updates some parameters itself."""
    assert not any("muon" in kind.__name__.lower() for kind in (AdaBelief, AuON, Frugal))


def test_state_is_made_by_name():
    """What a distributed checkpoint holds is found by the parameters' names, whatever wraps the model."""
    metadata = Metadata({"optimizer.state.layer.weight.step": None})
    model = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="a group has no param_names: give the optimizer pairs"):
        allocate_saved_state(AdaBelief(model.parameters()), metadata)
    with pytest.raises(ValueError, match=r"the checkpoint has no optimizer.state.weight.\*"):
        allocate_saved_state(AdaBelief(model.named_parameters()), metadata)
    allocate_saved_state(AdaBelief([("_orig_mod.layer._checkpoint_wrapped_module.weight", model.weight)]), metadata)


@pytest.mark.slow
def test_replicas_and_shards(tmp_path):
    """DDP and FSDP2; then one process reads what two wrote, and goes on as if it had always been alone."""
    run_on_two_ranks(Path(__file__).with_name("steps_of_shards.py"), tmp_path)
    for name in ("adabelief_bfloat16", "frugal_columns", "frugal_columns_project", "frugal_block_budget", "auon"):
        case, model = CASES[name], GivenModel(fill=False)
        optimizer = case.optimizer(model)
        reader = FileSystemReader(tmp_path / name)
        allocate_saved_state(optimizer, reader.read_metadata())
        state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        load(state, storage_reader=reader, no_dist=True)
        set_model_state_dict(model, state["model"])
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
        for step in range(SAVED_AFTER, STEPS):
            step_whole(model, optimizer, step)
        assert_same(dict(model.named_parameters()), trajectory(case), f"{name} from two ranks to one", case.is_exact)


@pytest.mark.slow
def test_partitions(tmp_path):
    """ZeRO stages 1, 2 and 3."""
    run_on_two_ranks(Path(__file__).with_name("steps_of_partitions.py"), tmp_path)

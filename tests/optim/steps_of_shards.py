"""Run by torchrun: do optimizers take the steps of one process under DDP and FSDP2, and go on after a checkpoint?

Argument: a folder for checkpoints.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, load, save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from rlhf.optim import AdaBelief
from rlhf.optim.base import NOT_SHARDED
from rlhf.optim.sharded_state import allocate_saved_state
from tests.optim.given_gradients import (
    CASES,
    SAVED_AFTER,
    STEPS,
    WARMUP,
    Case,
    GivenModel,
    assert_same,
    gradients_of,
    state_bytes,
    trajectory,
    warm_up,
)

REFUSED = ("frugal_chunk", "frugal_rows", "frugal_randk")


def main(folder: str) -> None:
    """Raises AssertionError on a rank whose weights differ."""
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2
    for name, case in CASES.items():
        check_replicas(name, case)
        if name in REFUSED:
            check_refused(case, f"selector {case.settings['selector']} under FSDP2")
        elif name != "frugal_chunk_8bit":
            check_shards(name, case, Path(folder) / name)
    check_replicated_shards()
    check_warm_up()
    check_low_precision()
    check_full_state()
    check_lost_moments(Path(folder) / "frugal_block_budget")
    check_refused(CASES["frugal_columns"], "scale for each 256 elements", state_dtype="8bit", density=0.5)
    check_columns_of_ranks()
    check_balance()
    dist.destroy_process_group()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, index: int) -> None:
    warm_up(optimizer, index)
    optimizer.zero_grad()
    model(gradients_of(index, dist.get_rank())).backward()
    optimizer.step()


def check_replicas(name: str, case: Case) -> None:
    """DDP: bitwise the steps of one process, also from a checkpoint on."""
    expected = trajectory(case)
    model = DistributedDataParallel(GivenModel())
    optimizer = case.optimizer(model.module)
    for index in range(STEPS):
        if index == SAVED_AFTER:
            saved = {key: value.clone() for key, value in model.module.state_dict().items()}, optimizer.state_dict()
            model, optimizer = DistributedDataParallel(GivenModel()), None
            model.module.load_state_dict(saved[0])
            optimizer = case.optimizer(model.module)
            optimizer.load_state_dict(saved[1])
        step(model, optimizer, index)
    assert_same(dict(model.module.named_parameters()), expected, f"{name} under DDP", is_exact=True)


def sharded(model: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
    for child in model.children():
        fully_shard(child, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.full_tensor() for name, parameter in model.named_parameters()}


def check_shards(name: str, case: Case, folder: Path) -> None:
    """FSDP2: the steps of one process, and from a distributed checkpoint on bitwise its own."""
    model = sharded(GivenModel())
    optimizer = case.optimizer(model)
    for index in range(STEPS):
        if index == SAVED_AFTER:
            state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
            save(state, storage_writer=FileSystemWriter(folder))
        step(model, optimizer, index)
    straight = whole(model)
    # directions that are found with the ranks' sums are not bitwise those that are found without
    if name != "frugal_svd":
        assert_same(straight, trajectory(case), f"{name} under FSDP2", case.is_exact)
    check_state_is_sharded(name, optimizer)

    model = sharded(GivenModel())
    optimizer = case.optimizer(model, lr=123.0)
    reader = FileSystemReader(folder)
    allocate_saved_state(optimizer, reader.read_metadata())
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    load(state, storage_reader=reader)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    for index in range(SAVED_AFTER, STEPS):
        step(model, optimizer, index)
    assert_same(whole(model), straight, f"{name} under FSDP2 after loading", is_exact=True)


def check_state_is_sharded(name: str, optimizer: torch.optim.Optimizer) -> None:
    """Every state that is no counter and no list of columns has as many rows as its parameter, placed as they are."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if value.ndim and key not in NOT_SHARDED:
                assert isinstance(value, DTensor), f"{name}: {key}"
                assert value.shape[0] == parameter.shape[0] and value.placements == parameter.placements, (name, key)
                assert value.to_local().shape[0] == parameter.to_local().shape[0], (name, key)


def check_replicated_shards() -> None:
    """Meshes of two dimensions, replicas of shards: sums are over the shards alone."""
    for shape in ((1, 2), (2, 1)):
        for name in ("frugal_columns", "auon"):
            model = sharded(GivenModel(), init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")))
            optimizer = CASES[name].optimizer(model)
            for index in range(STEPS):
                step(model, optimizer, index)
            assert_same(whole(model), trajectory(CASES[name]), f"{name} on a mesh of {shape}", CASES[name].is_exact)


def check_warm_up() -> None:
    """A first step of learning rate 0, where the second rank sees no gradient, is a step for both."""
    steps = (WARMUP, *range(STEPS))
    for name in ("adabelief", "frugal_columns", "auon"):
        model = sharded(GivenModel())
        optimizer = CASES[name].optimizer(model)
        for index in steps:
            step(model, optimizer, index)
        assert_same(whole(model), trajectory(CASES[name], steps), f"{name} after a warm-up", CASES[name].is_exact)


def check_low_precision() -> None:
    """bfloat16 weights with their lost bits beside them, or rounded by hash: bitwise those of one process."""
    for name, precision in (("frugal_columns_bfloat16", "split16"), ("adabelief_bfloat16", "sr")):
        model = sharded(GivenModel().bfloat16())
        optimizer = CASES[name].optimizer(model, param_precision=precision)
        for index in range(STEPS):
            step(model, optimizer, index)
        expected = trajectory(CASES[name], model=GivenModel().bfloat16(), param_precision=precision)
        assert_same(whole(model), expected, f"{name} with {precision}", is_exact=True)
        check_state_is_sharded(name, optimizer)
    model = sharded(GivenModel(only_large=True))
    # rows of 64 and of 96 elements
    check_raises(lambda: step(model, CASES["adabelief"].optimizer(model, state_dtype="8bit"), 0), "set state_dtype to")


def check_full_state() -> None:
    """A state that was gathered into one file: shards again, of moments that a new optimizer does not have."""
    options = StateDictOptions(full_state_dict=True)
    for name in ("frugal_columns", "frugal_block_budget", "auon"):
        case = CASES[name]
        model = sharded(GivenModel())
        optimizer = case.optimizer(model)
        for index in range(SAVED_AFTER):
            step(model, optimizer, index)
        state = get_optimizer_state_dict(model, optimizer, options=options)
        # torch makes no state for an optimizer whose parameters have gradients
        model.zero_grad()
        optimizer = case.optimizer(model)
        set_optimizer_state_dict(model, optimizer, state, options=options)
        for index in range(SAVED_AFTER, STEPS):
            step(model, optimizer, index)
        assert_same(whole(model), trajectory(case), f"{name} from a full state", case.is_exact)


def check_lost_moments(folder: Path) -> None:
    """Loading into a new optimizer without room for FRUGAL's moments is noticed."""
    model = sharded(GivenModel())
    optimizer = CASES["frugal_block_budget"].optimizer(model)
    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    load(state, storage_reader=FileSystemReader(folder))
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    check_raises(lambda: step(model, optimizer, SAVED_AFTER), "lacks exp_avg, exp_avg_sq: call rlhf.optim")


def check_refused(case: Case, message: str, **changes: object) -> None:
    model = sharded(GivenModel())
    optimizer = case.optimizer(model, **changes)
    check_raises(lambda: step(model, optimizer, 0), message)


def check_raises(call: Callable[[], None], message: str, kind: type[Exception] = ValueError) -> None:
    try:
        call()
    except kind as error:
        assert re.search(re.escape(message), str(error)), error
    else:
        raise AssertionError(f"nothing was raised, expected: {message}")


def check_columns_of_ranks() -> None:
    """Shards of columns, as tensor parallelism makes them, are refused."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parameter = nn.Parameter(distribute_tensor(torch.ones(4, 6), mesh, [Shard(1)]))
    parameter.grad = torch.ones_like(parameter)
    check_raises(AdaBelief([("weight", parameter)]).step, "weight is placed as", NotImplementedError)


def check_balance() -> None:
    """The ranks have alike much state under the default selector, in every epoch."""
    model = sharded(GivenModel(only_large=True))
    optimizer = CASES["frugal_block_budget"].optimizer(model, selector="auto", density=0.25)
    for index in range(STEPS):
        step(model, optimizer, index)
        sizes = [None] * dist.get_world_size()
        dist.all_gather_object(sizes, state_bytes(optimizer))
        assert max(sizes) <= 1.25 * min(sizes), sizes


if __name__ == "__main__":
    main(sys.argv[1])
